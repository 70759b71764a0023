"""Python teachers of dict observations, with masks and with states."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from torch import nn

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import ILLEGAL, MASK
from rldistill.core.spec import PolicySpec
from rldistill.envs.spaces import spec_from_env, spec_from_spaces
from rldistill.policies.agent import StatefulPolicy
from rldistill.policies.wrappers import with_action_mask
from rldistill.teachers.load import load_policy
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE

SPEC = spec_from_env(CARTPOLE)
ROOM = spaces.Dict(
    {
        "k": spaces.Discrete(4),
        "bits": spaces.MultiBinary(3),
        "picture": spaces.Box(0, 255, (36, 36, 3), np.uint8),
        "vec": spaces.Box(-5, 5, (2,), np.float64),
    }
)


def test_labels_equal_the_predictions_of_sb3() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", seed=0)
    policy = FunctionPolicy(lambda obs: model.predict(obs, deterministic=True), SPEC, batched=True)
    obs = torch.randn(50, 4)
    np.testing.assert_array_equal(policy(obs)[0].mode(), model.predict(obs.numpy(), deterministic=True)[0])


def remembers(spec: Any) -> Any:
    """Chooses `k`, and keeps what it was shown."""

    def chooses(obs: Any) -> int:
        SHOWN.append(obs)
        return int(obs["k"]) % 3

    return chooses


SHOWN: list[Any] = []


def flat(space: spaces.Dict, raw: list[Any]) -> torch.Tensor:
    return torch.stack([torch.cat([torch.as_tensor(o[key]).float().ravel() for key in space]) for o in raw])


def test_function_is_called_with_the_dict_of_its_environment() -> None:
    policy = load_policy(f"{__name__}:remembers", spec=spec_from_spaces("it", ROOM, spaces.Discrete(3)))
    ROOM.seed(0)
    raw = [ROOM.sample() for _ in range(5)]
    SHOWN.clear()
    assert policy(flat(ROOM, raw))[0].mode().tolist() == [int(obs["k"]) % 3 for obs in raw]
    for shown, obs in zip(SHOWN, raw, strict=True):
        for key in ROOM:
            np.testing.assert_allclose(shown[key], obs[key], rtol=1e-6)
            assert np.asarray(shown[key]).dtype == ROOM[key].dtype


def test_model_of_sb3_predicts_for_dicts() -> None:
    class Room(gymnasium.Env[Any, int]):
        observation_space, action_space = ROOM, spaces.Discrete(3)

        def reset(self, **kwargs: Any) -> Any:
            return ROOM.sample(), {}

    model = PPO("MultiInputPolicy", Room(), seed=0)
    spec = spec_from_spaces("it", ROOM, spaces.Discrete(3))
    policy = FunctionPolicy(lambda obs: model.predict(obs, deterministic=True), spec, batched=True)
    raw = [ROOM.sample() for _ in range(50)]
    expected, _ = model.predict({key: np.stack([o[key] for o in raw]) for key in ROOM}, deterministic=True)
    np.testing.assert_array_equal(policy(flat(ROOM, raw))[0].mode(), expected)


MASKED = spaces.Dict({"obs": spaces.Box(-1, 1, (4,)), MASK: spaces.MultiBinary(5)})
MASKED_SPEC = spec_from_spaces("it", MASKED, spaces.Discrete(5))


def obeys_nobody() -> Any:
    return lambda obs: 2 if obs.shape == (4,) else 99


def test_function_without_a_mask_is_restricted_to_legal_actions() -> None:
    policy = with_action_mask(load_policy(f"{__name__}:obeys_nobody", spec=MASKED_SPEC), MASKED_SPEC)
    policy.spec.require_same_input(MASKED_SPEC, "the teacher", "it")
    obs = torch.tensor([[1.0, 1, 1, 1, 1, 0, 0, 0, 0], [0.0, 0, 0, 1, 1, 0, 0, 0, 0]])
    output, _ = policy(obs)
    assert output.mode().tolist() == [2, 3]
    assert output.params[1, 2] == ILLEGAL


def makes_a_network(spec: PolicySpec) -> Any:
    return nn.Linear(*spec.obs_shape, spec.head.num_params)


def test_network_is_restricted_to_legal_actions() -> None:
    policy = with_action_mask(
        load_policy(f"{__name__}:makes_a_network", spec=MASKED_SPEC, head="q_values"), MASKED_SPEC
    )
    assert policy(torch.tensor([[0.0, 0, 0, 1, 0, 9, 9, 9, 9]]))[0].mode().tolist() == [3]


MODELS: list[Any] = []


def latest() -> Any:
    return MODELS[-1]


def test_a_model_with_masks_predicts_with_them() -> None:
    class ActionMaskedPolicy(gymnasium.Env[Any, int]):
        observation_space, action_space = MASKED["obs"], spaces.Discrete(5)

    MODELS.append(MaskablePPO("MlpPolicy", ActionMaskedPolicy(), seed=0))
    policy = load_policy(f"{__name__}:latest", spec=MASKED_SPEC)
    rng = np.random.default_rng(0)
    masks, obs = rng.random((200, 5)) < 0.5, rng.normal(size=(200, 4)).astype(np.float32)
    masks[np.arange(200), rng.integers(0, 5, 200)] = True
    expected, _ = MODELS[-1].predict(obs, deterministic=True, action_masks=masks)
    said, _ = with_action_mask(policy, MASKED_SPEC)(
        torch.from_numpy(np.concatenate([masks, obs], 1).astype(np.float32))
    )
    np.testing.assert_array_equal(said.mode(), expected)


class Still(gymnasium.Env[Any, Any]):
    """Shows and takes what it is made with."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("observations", [spaces.Box(-1, 1, (4,)), ROOM], ids=["vector", "dict"])
def test_recurrent_model_acts_as_it_predicts(observations: spaces.Space[Any], layers: int) -> None:
    actions = spaces.Box(-1, 1, (2,))
    kind = "MultiInputLstmPolicy" if isinstance(observations, spaces.Dict) else "MlpLstmPolicy"
    settings = {"lstm_hidden_size": 8, "n_lstm_layers": layers, "log_std_init": -9.0}
    model = RecurrentPPO(kind, Still(observations, actions), n_steps=8, seed=0, policy_kwargs=settings)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100)  # so that what it remembers shows in its actions
    MODELS.append(model)
    spec = spec_from_spaces("it", observations, actions)
    model.env = None  # as of one that was loaded
    policy = pickle.loads(pickle.dumps(load_policy(f"{__name__}:latest", spec=spec)))
    ours, theirs, starts = StatefulPolicy(policy, 3), None, np.ones(3, bool)
    assert ours.state is not None
    assert ours.state.shape == (3, 2, layers, 8)
    rng = np.random.default_rng(0)
    observations.seed(0)
    forgetful = 0.0
    for _ in range(40):
        raw = [observations.sample() for _ in starts]
        if isinstance(observations, spaces.Dict):
            shown: Any = {key: np.stack([obs[key] for obs in raw]) for key in observations}
            seen = flat(observations, raw).numpy()
        else:
            shown = seen = np.stack(raw)
        acted, theirs = model.predict(shown, theirs, starts, deterministic=True)
        forgetful = max(forgetful, np.abs(acted - model.predict(shown, deterministic=True)[0]).max())
        np.testing.assert_allclose(ours.step(seen).mode(), acted, atol=1e-6)
        starts = rng.random(3) < 0.2
        ours.reset(np.flatnonzero(starts))
    assert forgetful > 0.01


class Keeps:
    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def predict(self, obs: Any, state: Any = None, episode_start: Any = None) -> Any:
        return np.zeros(len(obs), int), self.kept


class Untold(Keeps):
    def predict(self, obs: Any, state: Any = None) -> Any:
        return super().predict(obs)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Keeps(np.zeros((1, 2, 8))), "a state that is a ndarray of no arrays, expected a pair of arrays"),
        (Keeps((np.zeros((2, 8)),) * 2), r"a tuple of \[2, 8\] and \[2, 8\]"),
        (Keeps((np.zeros((1, 2, 8)), np.zeros((1, 2, 7)))), r"\[1, 2, 8\] and \[1, 2, 7\]"),
        (Keeps((np.zeros((1, 2, 8), object),) * 2), "failed: TypeError"),
        (Keeps({"h": 1}), "a dict of no arrays"),
        (Untold(1), "a parameter episode_start"),
    ],
)
def test_a_state_of_another_form_is_refused(made: Any, words: str) -> None:
    MODELS.append(made)
    with pytest.raises((ConfigError, SpecMismatchError), match=rf"^teacher: {__name__}:latest .*{words}"):
        load_policy(f"{__name__}:latest", spec=SPEC)


def test_state_that_changes_its_shape_is_refused() -> None:
    MODELS.append(Keeps((np.zeros((1, 2, 8)),) * 2))
    policy = load_policy(f"{__name__}:latest", spec=SPEC)
    assert policy(torch.zeros(2, 4))[1] is not None
    for kept in ((np.zeros((1, 2, 9)),) * 2, None):
        MODELS[-1].kept = kept
        with pytest.raises(SpecMismatchError, match="at every step"):
            policy(torch.zeros(2, 4))
