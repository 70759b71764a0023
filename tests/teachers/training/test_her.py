"""Tests of hindsight experience replay for environments with goals."""

from collections import OrderedDict
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC

from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import read_jsonl
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import train_teacher
from rldistill.teachers.training.vec_env import HindsightReplay, training_env

HER = {"replay_buffer_class": "HerReplayBuffer", "learning_starts": 60, "policy_kwargs": {"net_arch": [8]}}


class Reach(gymnasium.Env[Any, Any]):
    """A point that moves by its action, 10 times; the reward is 0 near its goal, else -1."""

    observation_space = spaces.Dict(
        {
            "observation": spaces.Box(-9, 9, (1, 2), np.float64),
            "desired_goal": spaces.Box(-9, 9, (2,), np.float64),
            "achieved_goal": spaces.Box(-9, 9, (2,), np.float64),
        }
    )
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.at, self.goal = 0, np.zeros(2), self.np_random.uniform(-2, 2, 2)
        return self.observe(), {}

    def observe(self) -> Any:
        return {"observation": self.at[None] * 3, "desired_goal": self.goal, "achieved_goal": self.at}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.at = self.at + action
        reward = float(self.compute_reward(self.at, self.goal, {}))
        return self.observe(), reward, False, self.steps >= 10, {}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return -(np.linalg.norm(achieved - desired, axis=-1) > 0.5).astype(np.float64)


REACH = EnvConfig(f"{__name__}:Reach")


def train(folder: Path, env: EnvConfig = REACH, total_steps: int = 80, **settings: Any) -> Any:
    algorithm = settings.pop("algorithm", "SAC")
    config = TrainConfig(algorithm, total_steps, 2, 40, 2, hyperparameters={**HER, **settings})
    return train_teacher(env, config, folder, mode="resume", progress=False)


def test_rewards_are_those_of_the_new_goals() -> None:
    with closing(training_env(REACH, 2, 0, "train")) as vector:
        settings = {"replay_buffer_class": HindsightReplay, "learning_starts": 1_000}
        model = SAC("MlpPolicy", vector, seed=0, device="cpu", **settings)  # type: ignore[arg-type]
        model.learn(100)
        assert model.replay_buffer is not None
        batch = model.replay_buffer.sample(500)
    assert [*spec_from_env(REACH).entries] == [
        "achieved_goal",
        "desired_goal",
        "observation",
    ]  # the order of the vector
    obs, next_obs = batch.observations.numpy(), batch.next_observations.numpy()
    assert obs.shape == (500, 6)
    np.testing.assert_allclose(obs[:, 4:], 3 * obs[:, :2], atol=1e-5)
    np.testing.assert_array_equal(obs[:, 2:4], next_obs[:, 2:4])
    np.testing.assert_allclose(next_obs[:, :2] - obs[:, :2], batch.actions.numpy(), atol=1e-5)
    expected = Reach().compute_reward(next_obs[:, :2], obs[:, 2:4], {})
    np.testing.assert_array_equal(batch.rewards[:, 0].numpy(), expected)
    assert -0.9 < expected.mean() < -0.1  # goals that were reached, and others


class UnsortedReach(Reach):
    """Reach whose entries are not in the order of the alphabet."""

    observation_space = spaces.Dict(OrderedDict(sorted(Reach.observation_space.items(), reverse=True)))


def test_entries_in_another_order() -> None:
    env = EnvConfig(f"{__name__}:UnsortedReach")
    with closing(training_env(env, 2, 0, "train")) as vector:
        settings = {"replay_buffer_class": HindsightReplay, "learning_starts": 1_000}
        model = SAC("MlpPolicy", vector, seed=0, device="cpu", **settings)  # type: ignore[arg-type]
        model.learn(100)
        assert model.replay_buffer is not None
        obs = model.replay_buffer.sample(100).observations.numpy()
    assert [*spec_from_env(env).entries] == ["observation", "desired_goal", "achieved_goal"]
    np.testing.assert_allclose(obs[:, :2], 3 * obs[:, 4:], atol=1e-5)


def test_training_continues_with_hindsight(tmp_path: Path) -> None:
    train(tmp_path)
    teacher = train(tmp_path, total_steps=160)
    assert [key for key, _ in teacher.spec.parts] == ["achieved_goal", "desired_goal", "observation"]
    assert [row["step"] for row in read_jsonl(tmp_path / "curve.jsonl")] == [40, 80, 120, 160]


@pytest.mark.parametrize(
    ("env", "settings", "message"),
    [
        (EnvConfig("Pendulum-v1"), {}, "needs an environment with goals"),
        (REACH, {"replay_buffer_class": "Her"}, "replay_buffer_class: SAC cannot use 'Her'"),
        (REACH, {"algorithm": "DoubleDQN"}, "replay_buffer_class: DoubleDQN cannot use"),
        (REACH, {"algorithm": "PPO"}, "PPO has no such setting"),
    ],
)
def test_hindsight_that_cannot_be_used_is_refused(
    env: EnvConfig, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        train(tmp_path, env, **settings)
    assert "\n" not in str(error.value)
