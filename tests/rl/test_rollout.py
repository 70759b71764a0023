"""Tests of rollouts, with and without the first steps of each episode by the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import observation_views
from rldistill.policies.agent import StatefulPolicy
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.rollout import Rollout, RolloutWorker
from rldistill.students import Linear


class Countdown(gymnasium.Env[np.ndarray, int]):  # type: ignore[type-arg]
    """Episodes of four steps; the observation is the step number and the reward is the action."""

    observation_space = gymnasium.spaces.Box(0, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(seed=kwargs.get("seed"))
        self.age = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> Any:
        self.age += 1
        return np.array([self.age], np.float32), float(action), self.age == 4, False, {}


@pytest.fixture
def countdown() -> Iterator[EnvConfig]:
    gymnasium.register("Countdown-v0", Countdown)
    yield EnvConfig("Countdown-v0")
    del gymnasium.registry["Countdown-v0"]


def constant_policy(env: EnvConfig, action: int) -> NetworkPolicy:
    policy = Linear().build(observation_views(env).student)
    with torch.no_grad():
        policy.output.weight.zero_()  # type: ignore[operator]
        policy.output.bias.copy_(50.0 * torch.eye(3)[action])  # type: ignore[operator]
    return policy


def collect(env: EnvConfig, num_teacher_steps: int, teacher: bool = True) -> tuple[Rollout, RolloutWorker]:
    """Collect six steps of two environments, in which the student takes action 1 and the teacher action 2."""
    worker = RolloutWorker(env, observation_views(env), 2, 0)
    student = StatefulPolicy(constant_policy(env, 1), 2)
    worker.teacher = StatefulPolicy(constant_policy(env, 2), 2) if teacher else None
    with closing(worker.vector):
        return worker.collect(student, 6, num_teacher_steps, torch.Generator().manual_seed(0)), worker


@pytest.mark.parametrize(
    ("num_teacher_steps", "actions"),
    [
        (0, [1, 1, 1, 1, 1, 1]),
        (1, [2, 1, 1, 1, 2, 1]),
        (2, [2, 2, 1, 1, 2, 2]),
        (3, [2, 2, 2, 1, 2, 2]),
        (9, [2, 2, 2, 2, 2, 2]),
    ],
)
def test_teacher_takes_exactly_the_first_steps_of_each_episode(
    countdown: EnvConfig, num_teacher_steps: int, actions: list[int]
) -> None:
    rollout, worker = collect(countdown, num_teacher_steps)
    for slot in range(2):
        assert rollout.reward[:, slot].tolist() == actions
        if num_teacher_steps:
            assert rollout.weight is not None
            assert rollout.weight[:, slot].tolist() == [float(action == 1) for action in actions]
        else:
            assert rollout.weight is None
    assert rollout.raw_action.tolist() == [[1, 1]] * 6  # also where the teacher acted: the draw of the student
    assert [*worker.recent] == [sum(actions[:4])] * 2


def test_rollout_has_ends_of_episodes_and_labels(countdown: EnvConfig) -> None:
    rollout, _ = collect(countdown, 0)
    assert rollout.obs[:, 0, 0].tolist() == [0, 1, 2, 3, 0, 1]
    assert rollout.starts[:, 0].tolist() == [True, False, False, False, True, False]
    assert rollout.terminated[:, 0].tolist() == [False, False, False, True, False, False]
    assert not rollout.truncated.any()
    assert {key: obs.tolist() for key, obs in rollout.last_obs.items()} == {(3, 0): [4.0], (3, 1): [4.0]}
    assert rollout.next_obs.tolist() == [[2.0], [2.0]]
    assert rollout.labels is not None
    assert rollout.labels.tolist() == [[[0.0, 0.0, 50.0]] * 2] * 6


def test_rollout_without_a_teacher_has_no_labels(countdown: EnvConfig) -> None:
    rollout, _ = collect(countdown, 3, teacher=False)
    assert rollout.labels is None
    assert rollout.reward[:, 0].tolist() == [1] * 6
