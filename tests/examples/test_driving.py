"""Environments of highway-env beside those of the run files."""

from __future__ import annotations

from pathlib import Path

import pytest

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.evaluate import evaluate
from rldistill.teachers.load import load_policy
from rldistill.teachers.python import FunctionPolicy

pytestmark = pytest.mark.slow
pytest.importorskip("highway_env", reason="needs the extra driving")
SHORT = EnvConfig("intersection-v0", {"config": {"duration": 3}})


@pytest.mark.parametrize("env", [EnvConfig("merge-v0"), SHORT], ids=lambda env: env.id)
def test_other_roads_collect_and_evaluate(env: EnvConfig, tmp_path: Path) -> None:
    """The DQN of the motorway fits the observations of merge-v0, but not those of intersection-v0."""
    is_merge, faster = env.id == "merge-v0", 2
    teacher = load_policy("zoo:highway-dqn") if is_merge else FunctionPolicy(lambda _: faster, spec_from_env(env))
    config = CollectConfig(steps=24, num_streams=1, envs_per_stream=4, epsilon=0.5)
    data = collect(env, teacher, config, tmp_path / "data", progress=False)
    assert data.spec.obs_shape == ((5, 5) if is_merge else (15, 7))
    evaluation = EvaluateConfig(2, videos=False, metrics=("crashed",))
    result = evaluate(env, {"teacher": teacher}, evaluation, tmp_path / "scores", progress=False).to_dict()
    for policy in ("teacher", "random"):
        assert 0 <= result["policies"][policy]["metrics"]["crashed"]["value"] <= 1
