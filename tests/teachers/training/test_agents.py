"""Teachers of many agents: a central policy, and one that all agents share."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.core.errors import ConfigError
from rldistill.core.heads import MultiCategoricalHead
from rldistill.core.spec import EnvConfig
from rldistill.evaluation.episodes import play
from rldistill.io.atomic import read_json, read_jsonl
from rldistill.students.storage import load_native
from rldistill.students.team import TeamPolicy
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import train_teacher
from rldistill.teachers.training.vec_env import training_env

from ...envs import multi_agent_envs

MODULE = f"pettingzoo:{multi_agent_envs.__name__}"
PAIR, SIGNALS = EnvConfig(f"{MODULE}:make_pair"), EnvConfig(f"{MODULE}:make_signals")
SETTINGS = {"n_steps": 50, "batch_size": 100, "n_epochs": 5, "learning_rate": 0.02, "gamma": 0.0}
CONFIG = TrainConfig("PPO", 1_000, 4, 600, 9, hyperparameters=SETTINGS, agents="shared")


def test_each_agent_of_each_environment_has_a_slot() -> None:
    """Beside the environments themselves: observations, actions, rewards and last observations are theirs."""
    with (
        closing(training_env(PAIR, 2, 0, "train")) as joint,
        closing(training_env(PAIR, 2, 0, "train", "shared")) as rows,
    ):
        assert (rows.num_envs, rows.observation_space.shape) == (4, (2,))
        assert np.array_equal(rows.reset(), joint.reset().reshape(4, 2))
        for number in range(12):
            actions = np.array([0, 1, 1, number % 2])
            obs, reward, done, infos = rows.step(actions)
            joint_obs, joint_reward, joint_done, joint_infos = joint.step(actions.reshape(2, 2))
            assert np.array_equal(obs, joint_obs.reshape(4, 2))
            assert np.array_equal(reward, joint_reward[[0, 0, 1, 1]])
            assert np.array_equal(done, joint_done[[0, 0, 1, 1]])
            for slot, info in enumerate(infos):
                expected = joint_infos[slot // 2]
                assert info.keys() == expected.keys()
                if expected:
                    own = slice(2 * (slot % 2), 2 * (slot % 2) + 2)
                    assert np.array_equal(info["terminal_observation"], expected["terminal_observation"][own])
                    assert info["TimeLimit.truncated"]


@pytest.mark.slow
def test_agents_learn_one_policy_and_training_continues(tmp_path: Path) -> None:
    train_teacher(PAIR, replace(CONFIG, total_steps=600), tmp_path)
    policy = train_teacher(PAIR, CONFIG, tmp_path, mode="resume")
    assert isinstance(policy, TeamPolicy)
    assert policy.groups == {"all": ["near_0", "near_1"]}
    rows = read_jsonl(tmp_path / "curve.jsonl")
    assert [row["step"] for row in rows] == [600, 1_000]  # of the environment, not of each agent
    assert {len(row["returns"]) for row in rows} == {9}
    assert play(PAIR, policy, 20).returns.mean() > 8.5  # of 10; random play gets 5
    obs = torch.tensor([[0.5, 0.1, -0.5, 0.1], [-0.5, 0.1, 0.5, 0.1]])
    assert policy(obs)[0].mode().tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ConfigError, match=r"train\.agents was shared, .*--overwrite"):
        train_teacher(PAIR, replace(CONFIG, agents="central"), tmp_path, mode="resume")
    assert read_json(tmp_path / "policy.json")["provenance"]["env_steps"] in (600, 1_000)
    assert torch.equal(load_native(tmp_path)(obs)[0].params, policy(obs)[0].params)


@pytest.mark.slow
@pytest.mark.parametrize("continuous", [False, True])
def test_central_policy_acts_for_all_agents(continuous: bool, tmp_path: Path) -> None:
    env = replace(SIGNALS, kwargs={"continuous": continuous})
    policy = train_teacher(env, replace(CONFIG, agents="central"), tmp_path)
    assert policy.spec.obs_shape == (7,)
    assert policy.spec.head.kind == ("gaussian" if continuous else MultiCategoricalHead.kind)
    assert play(env, policy, 20).returns.mean() > 6.5  # random play gets 4.4 or 5


@pytest.mark.slow
def test_shared_policy_of_continuous_actions(tmp_path: Path) -> None:
    env = replace(PAIR, kwargs={"continuous": True})
    policy = train_teacher(env, CONFIG, tmp_path)
    assert policy(torch.zeros(3, 4))[0].mode().shape == (3, 2)
    assert play(env, policy, 20).returns.mean() > 6.5


@pytest.mark.parametrize(
    ("env", "changes", "message"),
    [
        (EnvConfig("CartPole-v1"), {}, r"^train\.agents: the environment has one agent\. Remove it\.$"),
        (SIGNALS, {}, r"^train\.agents: near_0 and far_0 have different observations or actions, .*Use central\.$"),
        (replace(PAIR, kwargs={"alive": True}), {}, r"^train\.agents: a shared policy observes one Box, .*"),
        (PAIR, {"normalize": True}, r"^train\.agents: shared is for PPO and A2C without normalize\."),
        (PAIR, {"algorithm": "SAC", "hyperparameters": {}}, r"^train\.agents: shared is for PPO and A2C"),
    ],
)
def test_policies_that_cannot_be_shared_are_refused(
    env: EnvConfig, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        train_teacher(env, replace(CONFIG, **changes), tmp_path / "teacher")
    assert "\n" not in str(error.value)
