"""Planner of `examples/` for three agents: its score, and a team that learns from it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.make import make_env
from rldistill.envs.multi_agent import make_joint_env
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.episodes import play
from rldistill.students import Mlp, Team
from rldistill.teachers.load import SavedTeacher, TeamTeacher, load_policy

pytestmark = pytest.mark.slow
ENV = EnvConfig("pettingzoo:mpe2.simple_spread_v3", {"local_ratio": 0.0})


def test_planner_covers_the_landmarks_and_teaches_a_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mpe2", reason="needs the extra multiagent")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    monkeypatch.delitem(sys.modules, "spread_planner", raising=False)
    planner = load_policy("spread_planner:make", spec=spec_from_env(ENV))
    score, random = play(ENV, planner, 20).returns.mean(), play(ENV, None, 20).returns.mean()
    assert score > -20
    assert random < -40
    data = collect(ENV, planner, CollectConfig(steps=6_000, epsilon=0.1), tmp_path / "data", progress=False)
    student = Team(student=Mlp(hidden=(48,)))
    team = distill(data, student, DistillConfig(epochs=8, learning_rate=3e-3), tmp_path / "team", progress=False)
    assert play(ENV, team, 20).returns.mean() > random + (score - random) / 4


def test_wrappers_of_supersuit_are_found_by_name() -> None:
    pytest.importorskip("mpe2", reason="needs the extra multiagent")
    pytest.importorskip("supersuit", reason="needs the extra multiagent")
    wrapper = Wrapper("supersuit:frame_stack_v1", {"stack_size": 2})
    env = dataclasses.replace(ENV, wrappers=(wrapper,))
    assert {part.shape for _, part in spec_from_env(env).parts} == {(36,)}  # twice 18
    assert (play(env, None, 3).returns == play(ENV, None, 3).returns).all()


def test_agents_that_take_turns_are_converted_where_possible() -> None:
    spread = pytest.importorskip("mpe2.simple_spread_v3", reason="needs the extra multiagent")
    assert make_joint_env(spread.env, local_ratio=0.0).observation_space == make_env(ENV).unwrapped.observation_space
    alone = spread.raw_env()
    alone.metadata = {**alone.metadata, "is_parallelizable": False}
    with pytest.raises(ConfigError, match="its agents take turns, and PettingZoo cannot convert it"):
        make_joint_env(lambda: alone)


def test_agent_trained_over_supersuit_plays_for_all_agents(tmp_path: Path) -> None:
    spread = pytest.importorskip("mpe2.simple_spread_v3", reason="needs the extra multiagent")
    supersuit = pytest.importorskip("supersuit", reason="needs the extra multiagent")
    single = supersuit.pettingzoo_env_to_vec_env_v1(spread.parallel_env(local_ratio=0.0))
    vector = supersuit.concat_vec_envs_v1(single, 1, base_class="stable_baselines3")
    model = PPO("MlpPolicy", vector, n_steps=32, batch_size=32).learn(96)
    model.save(tmp_path / "shared.zip")
    teacher = TeamTeacher({"all": SavedTeacher(str(tmp_path / "shared.zip"))}).load(spec_from_env(ENV))
    env = spread.parallel_env(local_ratio=0.0)
    obs, _ = env.reset(seed=3)
    expected = [int(model.predict(obs[agent], deterministic=True)[0]) for agent in env.agents]
    joint = torch.from_numpy(np.concatenate([obs[agent] for agent in env.agents])[None])
    assert teacher(joint)[0].mode()[0].tolist() == expected
