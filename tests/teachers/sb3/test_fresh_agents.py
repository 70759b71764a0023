"""Parity of new, untrained agents: every algorithm with every policy class and option."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

from rldistill.teachers.load import load_policy

from .test_parity import require_parity, sampled

pytestmark = pytest.mark.slow

BOX, IMAGE = spaces.Box(-2, 2, (3,)), spaces.Box(0, 255, (3, 36, 36), np.uint8)
DICT = spaces.Dict({"b": IMAGE, "a": spaces.Box(-1, 1, (2, 2)), "kind": spaces.Discrete(3)})
OBSERVATIONS = {"MlpPolicy": BOX, "CnnPolicy": IMAGE, "MultiInputPolicy": DICT}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "continuous": spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32)),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(4),
}
ON_POLICY = (PPO, A2C, TRPO, MaskablePPO, RecurrentPPO)
NET_ARCHS: dict[Any, list[Any]] = {
    **{key: [[], [5], {"pi": [5, 4], "vf": [3]}] for key in ON_POLICY},
    **{key: [[], [5], {"pi": [5, 4], "qf": [3]}] for key in (SAC, TD3, DDPG, TQC, CrossQ)},
    **{key: [[], [5], [5, 4]] for key in (DQN, QRDQN, ARS)},
}
KINDS = {
    **{key: ["discrete"] for key in (DQN, QRDQN)},
    **{key: ["continuous"] for key in (SAC, TD3, DDPG, TQC, CrossQ)},
    ARS: ["discrete", "continuous"],
    MaskablePPO: ["discrete", "multi-discrete", "multi-binary"],
    **{key: [*ACTIONS] for key in (PPO, A2C, TRPO, RecurrentPPO)},
}
EXTRACTED = (*ON_POLICY, SAC, TD3, DDPG, TQC)
Case = tuple[Any, str, str, dict[str, Any], dict[str, Any]]


def _cases() -> Iterator[Case]:
    """Yield algorithm, policy class, kind of action, settings, and settings of the policy."""
    for algorithm, kinds in KINDS.items():
        classes = ["MlpPolicy"] if algorithm in (ARS, CrossQ) else [*OBSERVATIONS]
        for policy, kind in itertools.product(classes, kinds):
            options: list[dict[str, Any]] = [{"net_arch": arch} for arch in NET_ARCHS[algorithm]]
            if policy != "MlpPolicy":
                options = [{"net_arch": [5]}, {"net_arch": [5], "normalize_images": False}]
            if algorithm in EXTRACTED:
                options += [{"net_arch": [5], "share_features_extractor": shared} for shared in (True, False)]
            yield from ((algorithm, policy, kind, {}, option) for option in options)
            if kind == "continuous" and algorithm in (PPO, A2C, TRPO, RecurrentPPO, SAC, TQC, CrossQ):
                own = [{}, {"use_expln": True}, {"full_std": False}]
                own += [{"squash_output": True}] if algorithm in ON_POLICY else [{"clip_mean": 0.5}]
                own = [option for option in own if algorithm is not CrossQ or "full_std" not in option]
                own = [option for option in own if algorithm not in (SAC, TQC) or "full_std" not in option]
                yield from ((algorithm, policy, kind, {"use_sde": True}, {"net_arch": [5], **option}) for option in own)
            if algorithm is ARS and kind == "continuous":
                yield algorithm, policy, kind, {}, {"net_arch": [5], "squash_output": False}


class Spaces(gymnasium.Env[Any, Any]):
    """Environment that only has spaces."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions


def _made(case: Case) -> Any:
    algorithm, policy, kind, settings, kwargs = case
    settings = settings | ({} if algorithm in (*ON_POLICY, ARS) else {"buffer_size": 10})
    settings |= {"n_steps": 16} if algorithm in ON_POLICY else {}
    settings |= {"batch_size": 16} if algorithm in (PPO, MaskablePPO, TRPO, RecurrentPPO) else {}
    name = policy.replace("Policy", "LstmPolicy") if algorithm is RecurrentPPO else policy
    kwargs = kwargs | ({"lstm_hidden_size": 6} if algorithm is RecurrentPPO else {})
    env = Spaces(OBSERVATIONS[policy], ACTIONS[kind])
    model = algorithm(name, env, seed=0, policy_kwargs=kwargs, **settings)
    generator = torch.Generator().manual_seed(0)
    for tensor in model.policy.state_dict().values():  # otherwise biases are 0, and statistics the identity
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand(tensor.shape, generator=generator)
    return model


@pytest.mark.parametrize("case", _cases(), ids=lambda case: " ".join([case[0].__name__, *map(str, case[1:])]))
def test_new_agent_equals_its_zip(case: Case, tmp_path: Path) -> None:
    model = _made(case)
    obs = sampled(model.observation_space, 64)
    if case[0] is not RecurrentPPO:
        require_parity(model, obs, tmp_path)
        return
    model.save(tmp_path / "model.zip")
    policy, theirs = load_policy(tmp_path / "model.zip"), None
    state = policy.initial_state(64)
    arrays = {key: part.numpy() for key, part in obs.items()} if isinstance(obs, dict) else obs.numpy()
    for step in range(3):
        with torch.no_grad():
            output, state = policy(obs, state)
        acted, theirs = model.predict(arrays, theirs, np.full(64, step == 0), deterministic=True)
        if output.head.discrete:
            assert np.mean(output.mode().numpy() == acted) > 0.98
        else:
            np.testing.assert_allclose(output.mode().numpy(), acted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state, torch.from_numpy(np.stack(theirs)).permute(2, 0, 1, 3), rtol=1e-5, atol=1e-5)
