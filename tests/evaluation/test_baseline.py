"""Evaluation against a policy of the user's own in place of random play."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rldistill.core.errors import ConfigError
from rldistill.data.dataset import Dataset
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig, RobustnessConfig
from rldistill.evaluation.episodes import VALIDATION, PlayConfig, play
from rldistill.evaluation.evaluate import evaluate, load_baseline
from rldistill.evaluation.results import Evaluation, verdict
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Run
from rldistill.reporting.model_card import model_card
from rldistill.reporting.page import write_report
from rldistill.run.config import read_run
from rldistill.search.config import SearchConfig
from rldistill.search.halving import SearchStage
from rldistill.students.storage import save_policy
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE

HERE = __name__


def rule() -> Any:
    return lean


def lean(obs: np.ndarray[Any, Any]) -> int:
    return int(obs[2] > 0)


def lagging(obs: np.ndarray[Any, Any]) -> int:
    return int(obs[2] + 0.2 * obs[3] > 0)


def test_scores_and_test_compare_with_the_baseline(teacher: NetworkPolicy, tmp_path: Path) -> None:
    policies = {"teacher": teacher, "student": FunctionPolicy(lagging, spec_from_env(CARTPOLE))}
    robust = RobustnessConfig(episodes=2, sticky=0.5, noise=0, physics=False)
    config = EvaluateConfig(6, videos=False, baseline=f"{HERE}:rule", robustness=robust)
    found = evaluate(CARTPOLE, policies, config, tmp_path)
    assert list(found.policies) == ["teacher", "student", "baseline"]
    means = {name: np.mean(entry.returns) for name, entry in found.policies.items()}
    expected = (means["student"] - means["baseline"]) / (means["teacher"] - means["baseline"])
    student, test = found.policies["student"], found.policies["student"].non_inferiority
    assert student.normalized is not None
    assert student.normalized.value == pytest.approx(expected)
    assert found.policies["baseline"].normalized is not None
    assert found.policies["baseline"].normalized.value == 0
    assert test is not None
    assert test.estimate == pytest.approx(means["student"] - 0.95 * means["teacher"] - 0.05 * means["baseline"])
    assert found.robustness is not None
    for rows in found.robustness.perturbations.values():
        changed = rows["student"]
        span = means["teacher"] - means["baseline"]
        assert changed.normalized == pytest.approx((changed.mean.value - means["baseline"]) / span)
    for text in (
        str(found),
        verdict(found),
        model_card(found, "").replace("\\", ""),
        write_report(tmp_path).read_text(encoding="utf-8"),
    ):
        assert f"thebaseline{HERE}:rule" in "".join(text.split())
        assert "random play" not in text
    assert Evaluation.read(tmp_path / "evaluation.json") == found


def test_baseline_is_any_path_of_a_teacher_or_a_policy(teacher: NetworkPolicy, tmp_path: Path) -> None:
    save_policy(teacher, tmp_path / "saved", {})
    assert load_baseline(str(tmp_path / "saved"), CARTPOLE).spec == teacher.spec
    policies = {"teacher": teacher, "baseline": FunctionPolicy(lean, spec_from_env(CARTPOLE), name="lean")}
    found = evaluate(CARTPOLE, policies, EvaluateConfig(2, videos=False), tmp_path)
    assert (found.baseline, list(found.policies)) == ("lean", ["teacher", "baseline"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("rules:act", "evaluate.baseline: "),
        ("nowhere/policy.zip", "evaluate.baseline: nowhere/policy.zip: there is no such file"),
        (f"{HERE}:missing", "evaluate.baseline: "),
    ],
)
def test_unusable_baseline_is_named(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_baseline(path, CARTPOLE)


def test_search_compares_with_the_baseline(teacher: NetworkPolicy, dataset: Dataset, tmp_path: Path) -> None:
    run = Run(env=CARTPOLE, teacher=teacher, out=tmp_path, evaluate=EvaluateConfig(baseline=f"{HERE}:rule"))
    baseline = load_baseline(f"{HERE}:rule", CARTPOLE)
    stage = SearchStage(run, SearchConfig(), CARTPOLE, teacher, dataset, baseline)
    own = play(CARTPOLE, baseline, 3, PlayConfig(split=VALIDATION)).returns
    assert stage.reference("baseline", 3, VALIDATION).tolist() == [own.tolist()]
    score = stage.normalized(own[None], VALIDATION)
    assert score is not None
    assert score.value == pytest.approx(0)


def test_no_student_is_called_baseline() -> None:
    document = {"env": {"id": "CartPole-v1"}, "teacher": "zoo:x", "students": {"baseline": "linear"}}
    with pytest.raises(ConfigError, match="none of teacher, random, baseline"):
        read_run(json.loads(json.dumps(document)))
