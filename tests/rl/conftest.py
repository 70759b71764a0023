"""Fixtures of the tests of learning from reward."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from rldistill.core.spec import EnvConfig
from rldistill.losses import ForwardKL
from rldistill.losses.objective import Term
from rldistill.policies.network import NetworkPolicy
from rldistill.rl import dqn
from rldistill.rl.config import DQNConfig
from rldistill.rl.train_state import LearningTask
from rldistill.students import AnyStudent

CARTPOLE = EnvConfig("CartPole-v1")
KL = (Term(ForwardKL()),)
SHORT = DQNConfig(
    total_steps=800, num_envs=4, buffer_size=400, learning_starts=80, batch_size=16, offline_steps=20,
    schedule="linear", ema_decay=0.9,
)  # fmt: skip


def learn_dqn(env: EnvConfig, student: AnyStudent, config: DQNConfig, folder: Path, **options: Any) -> NetworkPolicy:
    """Call `dqn.learn` with the options of the task among the others."""
    names = {"teacher", "guidance", "score", "seed"}
    task = LearningTask(env, student, folder, **{name: options.pop(name) for name in names & {*options}})
    return dqn.learn(task, config, **options)


class MaskedActions(gymnasium.Env[np.ndarray, int]):  # type: ignore[type-arg]
    """Episodes of ten steps of reward 1, in which action 0 is illegal."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def action_masks(self) -> list[bool]:
        return [False, True, True]

    def reset(self, **kwargs: Any) -> Any:
        super().reset(seed=kwargs.get("seed"))
        self.steps_left = 10
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: int) -> Any:
        assert action != 0
        self.steps_left -= 1
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, self.steps_left == 0, False, {}


@pytest.fixture
def masked_env() -> Iterator[EnvConfig]:
    gymnasium.register("MaskedActions-v0", MaskedActions)
    yield EnvConfig("MaskedActions-v0")
    del gymnasium.registry["MaskedActions-v0"]
