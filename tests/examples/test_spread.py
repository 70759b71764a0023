"""Planner of `examples/` for three agents: its score, and a team that learns from it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.spec import EnvConfig
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.episodes import play
from rldistill.students import Mlp, Team
from rldistill.teachers.load import load_policy

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
