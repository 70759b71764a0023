"""Views, critics and truncated episodes of the learners."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.core.policy import CPU
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.data.replay import ReplayBuffer
from rldistill.envs.spaces import observation_views
from rldistill.rl.config import PPOConfig
from rldistill.rl.ppo import PPOLearner
from rldistill.rl.rollout import RolloutWorker
from rldistill.rl.train_state import Learner, LearningTask
from rldistill.students import Mlp

from .conftest import CARTPOLE, SHORT, learn_dqn


def test_student_acts_on_its_own_view(tmp_path: Path) -> None:
    env = EnvConfig("CartPole-v1", views=Views(student=(Wrapper("MaskVelocity"),)))
    views = observation_views(env)
    worker = RolloutWorker(env, views, 2, seed=0)
    policy = Mlp((4,)).build(views.student)
    task = LearningTask(env, Mlp((4,)), tmp_path)
    config = PPOConfig(num_envs=2)
    learner = Learner(task, config, worker, {"policy": policy}, torch.optim.Adam(policy.parameters()))
    obs = worker.student_obs(worker.obs)
    assert obs.shape == (2, *views.student.obs_shape)
    torch.testing.assert_close(learner.student.step(worker.obs).params, policy(obs)[0].params.detach())
    worker.vector.close()


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (CARTPOLE, [(64, 4), (64, 64), (1, 64)]),
        # (84 - 8) / 4 + 1 = 20, and (20 - 4) / 2 + 1 = 9, so that 32 * 9 * 9 = 2592 numbers are left of an image
        (EnvConfig("ALE/Pong-v5"), [(16, 4, 8, 8), (32, 16, 4, 4), (128, 2592), (1, 128)]),
    ],
    ids=["vector", "image"],
)
def test_critic_is_small_by_default(env: EnvConfig, expected: list[tuple[int, ...]], tmp_path: Path) -> None:
    task, config = LearningTask(env, Mlp((4,)), tmp_path), PPOConfig(num_envs=1)
    with task.open(config, CPU) as worker:
        critic = PPOLearner(task, config, worker, None).critic
    weights = [tuple(value.shape) for name, value in critic.state_dict().items() if name.endswith("weight")]
    assert weights == expected


def test_last_observations_of_truncated_episodes_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[tuple[dict[int, Any], Any, Any]] = []
    add = ReplayBuffer.add

    def recorded_add(replay: ReplayBuffer, obs: Any, last_obs: dict[int, Any], **columns: Any) -> None:
        added.append((last_obs, obs.copy(), columns["truncated"]))
        add(replay, obs, last_obs, **columns)

    monkeypatch.setattr(ReplayBuffer, "add", recorded_add)
    config = dataclasses.replace(SHORT, total_steps=24, num_envs=2)
    learn_dqn(EnvConfig("CartPole-v1", {"max_episode_steps": 5}), Mlp((4,)), config, tmp_path)
    assert [sorted(last_obs) for last_obs, _, _ in added] == [[], [], [], [], [0, 1]] * 2 + [[], []]
    for number in (4, 9):
        last_obs, before, truncated = added[number]
        after = added[number + 1][1]
        assert truncated.all()
        for slot in (0, 1):
            # One step moves the cart by its velocity times 0.02 s; a new episode starts elsewhere.
            assert last_obs[slot][0] == pytest.approx(before[slot][0] + 0.02 * before[slot][1], abs=1e-5)
            assert not np.array_equal(last_obs[slot], after[slot])
