"""Runs in which some students learn nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from rldistill.collection.config import CollectConfig
from rldistill.core.errors import NothingLearnedError
from rldistill.distillation.config import DistillConfig
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.results import Evaluation
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.dagger import Dagger
from rldistill.recipes.job import Run, StudentJob
from rldistill.recipes.offline import Offline
from rldistill.run.stages import run_all, run_search
from rldistill.search.config import SearchConfig
from rldistill.students import Linear, Mlp, Tree

from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow


def make_run(folder: Path, teacher: NetworkPolicy) -> Run:
    return Run(
        env=CARTPOLE,
        teacher=teacher,
        out=folder,
        collect=CollectConfig(steps=1_000),
        distill=DistillConfig(epochs=10, batch_size=32),
        students={"stubborn": Mlp((1,)), "linear": Linear()},
        evaluate=EvaluateConfig(episodes=2, videos=False),
        verify=False,
    )


def test_report_has_the_students_that_learned(
    tmp_path: Path, teacher: NetworkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    distill = Offline.distill

    def fail(self: Offline, job: StudentJob, *arguments: Any) -> NetworkPolicy:
        if job.name in failing:
            raise NothingLearnedError(f"{job.name}: the student learned nothing.")
        return distill(self, job, *arguments)

    monkeypatch.setattr(Offline, "distill", fail)
    run, failing = make_run(tmp_path, teacher), {"stubborn", "linear"}
    with pytest.raises(NothingLearnedError, match=r"^stubborn: the student learned nothing\.$"):
        run_all(run, quiet=True)
    assert not (tmp_path / "evaluation.json").exists()
    failing.remove("linear")
    with pytest.raises(NothingLearnedError, match=r"^stubborn: .* The report has the other students, without stubborn"):
        run_all(run, mode="resume", quiet=True)
    evaluation = Evaluation.read(tmp_path / "evaluation.json")
    assert list(evaluation.policies) == ["teacher", "linear", "random"]
    assert evaluation.warnings["learned-nothing"].endswith("learned nothing: stubborn")
    assert "learned nothing: stubborn" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_search_of_own_students_trains_no_other_one(
    tmp_path: Path, teacher: NetworkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting: list[object] = []

    def fail(self: Dagger, job: StudentJob, *arguments: Any) -> NetworkPolicy:
        acting.append(job.student)
        raise NothingLearnedError("the student learned nothing.")

    monkeypatch.setattr(Dagger, "distill", fail)
    run = dataclasses.replace(make_run(tmp_path, teacher), students={"tree": Tree(2), "linear": Linear()})
    message = r"^behavior_policy: the student learned nothing\. .* Name another student of the run"
    for config in (SearchConfig(own=True), SearchConfig(behavior_policy="tree")):
        with pytest.raises(NothingLearnedError, match=message):
            run_search(run, config, mode="overwrite", quiet=True)
    assert acting == [Linear(), Tree(2)]
