"""Environments of highway-env beside those of the run files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.spec import EnvConfig
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.evaluate import evaluate
from rldistill.run.config import load_run
from rldistill.run.stages import run_all
from rldistill.teachers.load import load_policy

pytestmark = pytest.mark.slow
pytest.importorskip("highway_env", reason="needs the extra driving")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def test_teacher_of_the_motorway_plays_merge(tmp_path: Path) -> None:
    env, teacher = EnvConfig("merge-v0"), load_policy("zoo:highway-dqn")
    config = CollectConfig(steps=24, num_streams=1, envs_per_stream=4, epsilon=0.5)
    data = collect(env, teacher, config, tmp_path / "data", progress=False)
    assert data.spec.obs_shape == (5, 5)
    evaluation = EvaluateConfig(2, videos=False, metrics=("crashed",))
    result = evaluate(env, {"teacher": teacher}, evaluation, tmp_path / "scores", progress=False).to_dict()
    for policy in ("teacher", "random"):
        assert 0 <= result["policies"][policy]["metrics"]["crashed"]["value"] <= 1


def test_intersection(tmp_path: Path) -> None:
    small = ["env.kwargs.config.simulation_frequency=5"]  # a third of the time
    small += ["collect={steps: 240, num_streams: 1, envs_per_stream: 4, epsilon: 0.15}", "recipe=offline", "seeds=[0]"]
    small += [
        "students={cars: {type: 'examples.intersection:CarSet', size: 16}}",
        "distill={losses: [action_nll], epochs: 20, batch_size: 16}",
    ]
    small += ["evaluate={episodes: 3, metrics: [crashed], videos: false, labeled_episodes: 1}", "verify=false"]
    run_all(load_run(ROOT / "examples" / "intersection.yaml", [f"out={tmp_path}", *small], {}), quiet=True)
    found = json.loads((tmp_path / "evaluation.json").read_text())["policies"]
    assert found["teacher"]["mean"]["value"] > found["random"]["mean"]["value"]
    assert 0 <= found["cars"]["metrics"]["crashed"]["value"] <= 1


@pytest.fixture
def crossing() -> tuple[gymnasium.Env[Any, Any], NDArray[Any]]:
    config = load_run(ROOT / "examples" / "intersection.yaml", [], {}).env
    env = gymnasium.make(config.id, **config.kwargs)
    obs, _ = env.reset(seed=4)
    return env, obs


def test_planner_predicts_its_own_car(crossing: tuple[gymnasium.Env[Any, Any], NDArray[Any]]) -> None:
    from examples.intersection import DT, FASTER, PLANS, SLOWER, driven

    env, obs = crossing
    way = driven(20 * np.hypot(*obs[0, 3:5]))
    car = env.unwrapped.vehicle  # type: ignore[attr-defined]
    start = car.position.copy()
    for second, action in enumerate((SLOWER, SLOWER, FASTER), 1):  # on a straight road
        env.step(action)
        assert np.linalg.norm(car.position - start) == pytest.approx(way[2, round(second / DT) - 1], abs=0.5)
    assert PLANS[2][:3] == [SLOWER, SLOWER, FASTER]


def test_planner_finds_the_ways_of_other_cars(crossing: tuple[gymnasium.Env[Any, Any], NDArray[Any]]) -> None:
    from examples.intersection import Ways

    env, ways = crossing[0], Ways()
    for _ in range(4):
        cars = [car for car in env.unwrapped.road.vehicles if car is not env.unwrapped.vehicle]  # type: ignore[attr-defined]
        columns = ("position", "direction", "destination_direction", "destination")
        places, directions, aims, ends = (np.array([getattr(car, name) for car in cars]) for name in columns)
        way, point = ways.nearest(places, directions, aims)
        assert np.abs(ways.points[way, point] - places).max() < 2
        assert np.abs(ways.ends[way] - ends).max() < 1
        env.step(1)
