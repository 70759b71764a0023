"""Dict observations go through every stage: an SB3 teacher that takes them, its data, a student, an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.entries import split_parts
from rldistill.core.errors import SpecMismatchError
from rldistill.core.spec import EnvConfig
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env, spec_from_spaces
from rldistill.evaluation.episodes import play
from rldistill.students import Linear, Mlp, Tree
from rldistill.students.storage import load_native
from rldistill.teachers.load import load_policy

from .picture_envs import Sides

SPACE = spaces.Dict(
    {"cart": spaces.Box(-5, 5, (2,)), "side": spaces.Discrete(3), "lamp": spaces.Box(0, 3, (2, 2), np.uint8)}
)


class Balance(Sides):
    """The right action is the side that is shown; lamp and cart are noise."""

    observation_space = SPACE
    action_space = spaces.Discrete(3)

    def _seen(self) -> dict[str, Any]:
        self.side = int(self.np_random.integers(3))
        lamp = self.np_random.integers(0, 4, (2, 2)).astype(np.uint8)
        return {"cart": self.np_random.normal(size=2).astype(np.float32), "side": self.side, "lamp": lamp}


@pytest.fixture(scope="module")
def env() -> EnvConfig:
    gymnasium.register("Balance-v0", Balance)
    return EnvConfig("Balance-v0")


def test_dict_observations_pass_every_stage(env: EnvConfig, tmp_path: Path) -> None:
    model = PPO("MultiInputPolicy", Balance(), seed=0, n_steps=256, batch_size=64, learning_rate=3e-3)
    model.learn(6_000)
    model.save(tmp_path / "teacher.zip")
    teacher = load_policy(tmp_path / "teacher.zip")
    assert play(env, teacher, 5).returns.mean() > 12  # at random, 6.7
    data = collect(env, teacher, CollectConfig(steps=2_000, epsilon=0.3, block_steps=64), tmp_path / "dataset")
    student = distill(data, Mlp((16,)), DistillConfig(epochs=40, batch_size=32), tmp_path / "student")
    assert play(env, student, 5).returns.mean() > 12
    assert load_native(tmp_path / "student").spec == student.spec
    obs = Balance()
    obs.reset(seed=0)
    single, _ = student({key: torch.as_tensor(np.asarray(value))[None] for key, value in obs._seen().items()})
    assert single.params.shape == (1, 3)


def test_flattened_dict_has_the_values_of_its_entries(env: EnvConfig) -> None:
    spec = spec_from_env(env)
    raw = [SPACE.sample() for _ in range(4)]
    flat = torch.stack([torch.cat([torch.as_tensor(o[key]).float().ravel() for key in SPACE]) for o in raw])
    entries = split_parts(flat, spec)
    for key in SPACE:
        np.testing.assert_array_equal(entries[key].numpy(), np.stack([o[key] for o in raw]))
    assert entries["lamp"].dtype == torch.uint8
    policy = Linear().build(spec).eval()
    torch.testing.assert_close(policy(flat)[0].params, policy(entries)[0].params)


def test_a_policy_for_vectors_refuses_a_dict(env: EnvConfig) -> None:
    policy = Linear().build(spec_from_env(EnvConfig("CartPole-v1")))
    with pytest.raises(SpecMismatchError, match="not a dict"):
        policy({"a": torch.zeros(1, 4)})


def test_numbers_without_a_shape_are_entries() -> None:
    space = spaces.Dict({"work": spaces.Box(-9, 9, ()), "cart": spaces.Box(-5, 5, (2,))})
    spec = spec_from_spaces("Own-v0", space, spaces.Discrete(3))
    entries = {"work": torch.tensor([1.0, 2.0]), "cart": torch.ones(2, 2)}
    joined = torch.cat([entries[key].reshape(2, -1) for key in spec.entries], 1)
    for student in (Tree(), Mlp((4,))):
        policy = student.build(spec).eval()
        torch.testing.assert_close(policy(entries)[0].params, policy(joined)[0].params)
