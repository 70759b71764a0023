"""Pictures of many agents: a team of convolutional networks learns from a teacher that sees all of them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.run.config import load_run
from rldistill.students.team import TeamPolicy
from rldistill.teachers.load import load_policy

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_pictures_of_pistons_teach_a_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymunk", reason="needs the extra multiagent")
    pytest.importorskip("supersuit", reason="needs the extra multiagent")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "pistonball", raising=False)
    run = load_run(EXAMPLES / "pistonball.yaml")
    kwargs = {**run.env.kwargs, "n_pistons": 5, "max_cycles": 12}
    env = dataclasses.replace(run.env, kwargs=kwargs)
    spec = spec_from_env(env)
    assert {part.shape for _, part in spec.parts} == {(3, 24, 24)}
    teacher = load_policy("pistonball:make", spec=spec)
    config = CollectConfig(steps=120, num_streams=1, envs_per_stream=2, epsilon=0.1)
    data = collect(env, teacher, config, tmp_path / "data", progress=False)
    settings = DistillConfig(epochs=12, batch_size=32, learning_rate=3e-3)
    team = distill(data, run.students["cnn"], settings, tmp_path / "team", progress=False)
    assert isinstance(team, TeamPolicy)
    assert team.member("piston").spec.obs_shape == (3, 24, 24)
    batch = data.batch(np.arange(len(data)))
    agreement = (team(batch.obs)[0].mode() == batch.teacher.mode()).float().mean()
    assert float(agreement) > 0.8
