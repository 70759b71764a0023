"""Every SB3 algorithm, observation, action and option: rebuilt networks return the numbers of SB3."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from torch import Tensor, nn

from rldistill.core.policy import PolicyOutput
from rldistill.envs.spaces import spec_from_spaces
from rldistill.students.storage import save_policy
from rldistill.teachers.load import load_policy
from rldistill.teachers.sb3.load import load_sb3, to_native
from rldistill.teachers.training.dqn import DoubleDQN

pytestmark = pytest.mark.slow

BOX = spaces.Box(-2, 2, (5,), np.float64)
PICTURE = spaces.Box(0, 255, (3, 40, 44), np.uint8)
DICT = spaces.Dict(
    {
        "place": spaces.Box(-1, 1, (2, 3)),
        "kind": spaces.Discrete(4),
        "eye": PICTURE,
        "raw": spaces.Box(0, 9, (3,), np.uint8),
    }
)
TURN, PUSH = spaces.Discrete(3), spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32))
SMALL = {"buffer_size": 200, "learning_starts": 10}
CRITIC = {"net_arch": {"pi": [7], "qf": [9]}}


class Env(gymnasium.Env[Any, Any]):
    """Draws its observations and rewards at random."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space, self.time = observation_space, action_space, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self.observation_space.sample(), float(self.np_random.normal()), self.time >= 20, False, {}

    def action_masks(self) -> np.ndarray:
        space = self.action_space
        sizes = {spaces.Discrete: "n", spaces.MultiDiscrete: "nvec"}
        size = int(np.sum(getattr(space, sizes[type(space)]))) if type(space) in sizes else 2 * space.shape[0]
        return np.ones(size, bool)


Case = tuple[str, Any, spaces.Space[Any], spaces.Space[Any], dict[str, Any]]
CASES: list[Case] = [
    ("dqn", DQN, BOX, TURN, SMALL),
    ("double dqn", DoubleDQN, BOX, TURN, SMALL),
    ("dqn on bytes", DQN, spaces.Box(0, 255, (7,), np.uint8), TURN, SMALL),
    ("dqn on pictures", DQN, PICTURE, TURN, SMALL),
    ("dqn on a dict", DQN, DICT, TURN, SMALL),
    ("qrdqn", QRDQN, BOX, TURN, SMALL | {"policy_kwargs": {"n_quantiles": 11, "net_arch": [8]}}),
    ("ppo", PPO, BOX, TURN, {}),
    ("ppo continuous", PPO, BOX, PUSH, {}),
    ("ppo multi-discrete", PPO, BOX, spaces.MultiDiscrete([2, 3]), {}),
    ("ppo multi-binary", PPO, BOX, spaces.MultiBinary(4), {}),
    ("ppo discrete observations", PPO, spaces.Discrete(6), TURN, {}),
    ("ppo multi-discrete observations", PPO, spaces.MultiDiscrete([3, 2]), TURN, {}),
    ("ppo multi-binary observations", PPO, spaces.MultiBinary(5), TURN, {}),
    ("ppo pictures, tanh behind", PPO, PICTURE, PUSH, {"policy_kwargs": {"net_arch": [8]}}),
    ("ppo pictures, bytes kept", PPO, PICTURE, TURN, {"policy_kwargs": {"normalize_images": False}}),
    ("ppo bytes that are no picture", PPO, spaces.Box(0, 10, (3, 5, 5), np.uint8), TURN, {}),
    ("ppo odd bounds", PPO, BOX, spaces.Box(np.float32([-0.4, 0.1, -3]), np.float32([0.4, 1 / 3, 7])), {}),
    ("sac odd bounds", SAC, BOX, spaces.Box(-0.4, 0.4, (3,)), SMALL),
    ("maskable ppo multi-binary", MaskablePPO, BOX, spaces.MultiBinary(3), {}),
    ("maskable ppo multi-discrete", MaskablePPO, BOX, spaces.MultiDiscrete([2, 3]), {}),
    ("ppo own features", PPO, PICTURE, TURN, {"policy_kwargs": {"share_features_extractor": False}}),
    ("ppo dict", PPO, DICT, PUSH, {"policy_kwargs": {"activation_fn": nn.LeakyReLU}}),
    ("ppo no layers", PPO, BOX, TURN, {"policy_kwargs": {"net_arch": []}}),
    ("ppo uneven", PPO, BOX, TURN, {"policy_kwargs": {"net_arch": {"pi": [6, 5], "vf": [4]}, "activation_fn": nn.ELU}}),
    ("ppo gsde", PPO, BOX, PUSH, {"use_sde": True}),
    ("ppo gsde expln", PPO, BOX, PUSH, {"use_sde": True, "policy_kwargs": {"use_expln": True, "full_std": False}}),
    ("ppo gsde squashed", PPO, BOX, PUSH, {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    ("a2c gsde", A2C, BOX, PUSH, {"use_sde": True, "policy_kwargs": {"log_std_init": -2, "ortho_init": False}}),
    ("a2c", A2C, BOX, TURN, {}),
    ("trpo", TRPO, BOX, PUSH, {}),
    ("maskable ppo", MaskablePPO, BOX, TURN, {}),
    ("sac", SAC, BOX, PUSH, SMALL | {"policy_kwargs": CRITIC}),
    ("sac gsde", SAC, BOX, PUSH, SMALL | {"use_sde": True, "policy_kwargs": {"use_expln": True, "log_std_init": 0.3}}),
    ("sac gsde unclipped", SAC, BOX, PUSH, SMALL | {"use_sde": True, "policy_kwargs": {"clip_mean": 0.0}}),
    ("sac dict", SAC, DICT, PUSH, SMALL | {"policy_kwargs": {"net_arch": [8]}}),
    ("td3", TD3, BOX, PUSH, SMALL | {"policy_kwargs": CRITIC}),
    ("ddpg", DDPG, BOX, PUSH, SMALL),
    ("tqc", TQC, BOX, PUSH, SMALL),
    ("crossq", CrossQ, BOX, PUSH, SMALL | {"policy_kwargs": CRITIC}),
    ("crossq gsde", CrossQ, BOX, PUSH, SMALL | {"use_sde": True, "policy_kwargs": CRITIC | {"activation_fn": nn.Tanh}}),
    ("crossq eps", CrossQ, BOX, PUSH, SMALL | {"policy_kwargs": {"batch_norm_eps": 0.3, "net_arch": [5, 7]}}),
    ("crossq plain", CrossQ, BOX, PUSH, SMALL | {"policy_kwargs": {"batch_norm": False, "net_arch": [5, 7]}}),
    ("crossq no layers", CrossQ, BOX, PUSH, SMALL | {"policy_kwargs": {"net_arch": {"pi": [], "qf": [9]}}}),
    ("ppo prelu", PPO, BOX, TURN, {"policy_kwargs": {"activation_fn": nn.PReLU}}),
    ("sac prelu", SAC, BOX, PUSH, SMALL | {"policy_kwargs": {"activation_fn": partial(nn.PReLU, init=0.1)}}),
    ("dqn rrelu", DQN, BOX, TURN, SMALL | {"policy_kwargs": {"activation_fn": partial(nn.RReLU, 0.2, upper=0.4)}}),
    ("td3 leaky", TD3, BOX, PUSH, SMALL | {"policy_kwargs": {"activation_fn": partial(nn.LeakyReLU, 0.2)}}),
    (
        "crossq elu",
        CrossQ,
        BOX,
        PUSH,
        SMALL | {"policy_kwargs": CRITIC | {"activation_fn": partial(nn.ELU, alpha=0.4)}},
    ),
    ("ars", ARS, BOX, PUSH, {"n_delta": 2}),
    ("ars unsquashed", ARS, BOX, PUSH, {"n_delta": 2, "policy_kwargs": {"squash_output": False}}),
    ("ars discrete", ARS, BOX, TURN, {"n_delta": 2}),
    ("ars no layers", ARS, BOX, PUSH, {"n_delta": 2, "policy_kwargs": {"net_arch": []}}),
    ("ars linear", ARS, BOX, PUSH, {"n_delta": 2, "policy": "LinearPolicy"}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_rebuilt_model_equals_the_trained_one(case: Case, tmp_path: Path) -> None:
    _, algorithm, observations, actions, settings = case
    require_parity(trained(algorithm, observations, actions, settings), sampled(observations, 1_000), tmp_path)


def require_parity(model: Any, obs: Any, folder: Path) -> None:
    """Require the outputs of SB3 of the policy in the zip, of one that we saved, and of one without a file."""
    model.save(folder / "model.zip")
    model.policy.set_training_mode(False)
    ours = load_sb3(folder / "model.zip")
    ours.obs_clip = dict.fromkeys(ours.spec.entries, 1e6)
    save_policy(ours, folder / "ours", {})
    spec = spec_from_spaces("it", model.observation_space, model.action_space)
    for policy in (load_policy(folder / "ours"), to_native(model)):
        policy.spec.require_same_input(spec, "ours", "the environment")
        for rows in (obs, first(obs)):
            with torch.no_grad():
                output, _ = policy(rows)
                expected = sb3_params(model, rows)
            torch.testing.assert_close(comparable(output, expected), expected, rtol=1e-5, atol=1e-5)
            acted, _ = model.predict(as_numpy(rows), deterministic=True)
            mode = output.mode().numpy()
            if output.head.discrete:
                assert np.mean(mode == acted) > 0.98  # ties are broken by rounding
            else:
                np.testing.assert_allclose(mode, acted, rtol=1e-5, atol=1e-5)
            if output.value is not None:
                torch.testing.assert_close(output.value, model.policy.predict_values(rows)[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("actions", [TURN, PUSH], ids=["discrete", "continuous"])
def test_rebuilt_recurrent_model_equals_the_original(layers: int, actions: spaces.Space[Any], tmp_path: Path) -> None:
    settings = {"n_steps": 16, "policy_kwargs": {"lstm_hidden_size": 8, "n_lstm_layers": layers}}
    model = trained(RecurrentPPO, BOX, actions, settings)
    model.save(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip")
    state, theirs = policy.initial_state(3), None
    for step in range(12):
        obs = sampled(BOX, 3)
        with torch.no_grad():
            output, state = policy(obs, state)
        starts = np.full(3, step == 0)
        acted, theirs = model.predict(obs.numpy(), theirs, starts, deterministic=True)
        if output.head.discrete:
            np.testing.assert_array_equal(output.mode().numpy(), acted)
        else:
            np.testing.assert_allclose(output.mode().numpy(), acted, rtol=1e-5, atol=1e-5)
        hidden = torch.from_numpy(np.stack(theirs)).permute(2, 0, 1, 3)
        torch.testing.assert_close(state, hidden, rtol=1e-5, atol=1e-5)


def trained(algorithm: Any, observations: Any, actions: Any, settings: dict[str, Any]) -> Any:
    settings = copy.deepcopy(settings)  # SB3 adds to policy_kwargs
    default = (
        "MlpLstmPolicy"
        if algorithm is RecurrentPPO
        else "MultiInputPolicy"
        if observations is DICT
        else "CnnPolicy"
        if observations is PICTURE
        else "MlpPolicy"
    )
    policy = settings.pop("policy", default)
    on_policy = algorithm in (PPO, A2C, TRPO, MaskablePPO)
    settings |= {"n_steps": 64} if on_policy and algorithm is not A2C else {}
    if algorithm in (PPO, MaskablePPO, TRPO):
        settings["batch_size"] = 32
    model = algorithm(policy, Env(observations, actions), seed=0, **settings)
    model.learn(60)
    return model


def sampled(space: spaces.Space[Any], count: int) -> Any:
    space.seed(1)
    drawn = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: torch.from_numpy(np.stack([obs[key] for obs in drawn])) for key in space.spaces}
    return torch.from_numpy(np.stack(drawn))


def first(obs: Any) -> Any:
    return {key: value[:1] for key, value in obs.items()} if isinstance(obs, dict) else obs[:1]


def as_numpy(obs: Any) -> Any:
    return {key: value.numpy() for key, value in obs.items()} if isinstance(obs, dict) else obs.numpy()


def sb3_params(model: Any, obs: Any) -> Tensor:
    """Return the numbers of SB3: log-probabilities, Q values, mean and standard deviation."""
    policy = model.policy
    if isinstance(model, QRDQN):
        return model.quantile_net(obs).mean(1)
    if isinstance(model, DQN):
        return model.q_net(obs)
    if isinstance(model, TD3):
        return model.actor(obs)
    if isinstance(model, ARS):
        return policy.action_net(policy.extract_features(obs, policy.features_extractor))
    if isinstance(model, SAC | TQC | CrossQ):
        mean, log_std, kwargs = model.actor.get_action_dist_params(obs)
        if kwargs:
            inner = model.actor.action_dist.proba_distribution(mean, log_std, **kwargs).distribution
            return torch.cat([inner.mean, inner.stddev], -1)
        return torch.cat([mean, log_std.exp()], -1)
    if isinstance(model, MaskablePPO) and not isinstance(model.action_space, spaces.Discrete):
        parts = [part.logits for part in policy.get_distribution(obs).distributions]
        bits = isinstance(model.action_space, spaces.MultiBinary)
        return torch.stack([part[:, 1] - part[:, 0] for part in parts], -1) if bits else torch.cat(parts, -1)
    inner = policy.get_distribution(obs).distribution
    if isinstance(inner, list):
        return torch.cat([part.logits for part in inner], -1)
    if hasattr(inner, "logits"):
        return inner.logits
    return torch.cat([inner.mean, inner.stddev], -1)


def comparable(output: PolicyOutput, expected: Tensor) -> Tensor:
    """Our parameters as the numbers that `sb3_params` gives."""
    params, kind = output.params, output.head.kind
    by_kind: dict[str, Callable[[Tensor], Tensor]] = {
        "categorical": lambda x: x if expected.exp().sum(-1).sub(1).abs().max() > 1e-3 else x.log_softmax(-1),
        "multi_categorical": lambda x: torch.cat([part.log_softmax(-1) for part in x.split(output.head.nvec, -1)], -1),
        "gaussian": lambda x: torch.cat([x.chunk(2, -1)[0], x.chunk(2, -1)[1].exp()], -1),
    }
    if kind == "squashed_gaussian":
        mean, log_std = params.chunk(2, -1)
        return mean.tanh() if expected.shape == mean.shape else torch.cat([mean, log_std.exp()], -1)
    return by_kind.get(kind, lambda x: x)(params)
