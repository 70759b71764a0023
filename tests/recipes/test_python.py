"""Runs that are made in Python, without a run file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rldistill import (
    CollectConfig,
    ConfigError,
    Dagger,
    DistillConfig,
    EnvConfig,
    EvaluateConfig,
    Mlp,
    NetworkPolicy,
    collect,
)
from rldistill.collection.relabel import relabel
from rldistill.data.dataset import open_dataset
from rldistill.data.merge import merge
from rldistill.distillation.distill import distill
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.recipes.job import Recipe, Run, StudentJob
from rldistill.run.evaluation import run_evaluate
from rldistill.run.stages import run_all, run_collect, run_distill, run_train
from rldistill.students.storage import load_native


def make_run(folder: Path, teacher: NetworkPolicy, **changes: Any) -> Run:
    run = Run(
        out=folder,
        env=EnvConfig("CartPole-v1"),
        teacher=teacher,
        students={"mlp": Mlp((16,))},
        collect=CollectConfig(steps=1_000, epsilon=0.2),
        distill=DistillConfig(epochs=15, batch_size=64),
        evaluate=EvaluateConfig(episodes=5, videos=False),
    )
    return dataclasses.replace(run, **changes)


def test_run_with_a_policy_as_teacher(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = make_run(tmp_path / "run", teacher, recipe=Dagger(rounds=1, steps_per_round=200))
    report = run_all(run, quiet=True)
    assert report == run.out / "report.html"
    assert report.exists()
    assert isinstance(load_native(run.out / "students" / "mlp" / "seed-0"), NetworkPolicy)
    assert yaml.safe_load((run.out / "config.yaml").read_text())["recipe"]["steps_per_round"] == 200
    with pytest.raises(ConfigError, match=r"exists\. Continue it with mode=\"resume\" \(--resume\), or discard"):
        run_all(run, quiet=True)
    assert run_all(run, mode="resume", quiet=True) == report


def test_datasets_are_relabeled_merged_and_read(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = make_run(tmp_path / "run", teacher)
    first = run_collect(run, quiet=True)
    second = collect(run.env, teacher, run.collect, tmp_path / "second", seed=1, progress=False)
    assert open_dataset(run.out).num_steps == open_dataset(run.dataset_folder).num_steps == first.num_steps
    relabeled = relabel(run.dataset_folder, teacher, tmp_path / "relabeled", progress=False)
    assert relabeled.num_steps == first.num_steps
    merge([tmp_path / "relabeled", tmp_path / "second"], tmp_path / "merged", progress=False)
    assert open_dataset(tmp_path / "merged").num_steps == first.num_steps + second.num_steps


@dataclass(frozen=True)
class Twice(Recipe):
    """Recipe of a user: distill, then continue with fewer epochs."""

    epochs: int = 2

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        job.inputs().open_folder(job.folder, "policy.json", mode)
        first = distill(job.data, job.student, job.run.distill, job.folder / "first", seed=job.seed, progress=False)
        config = dataclasses.replace(job.run.distill, epochs=self.epochs)
        return distill(job.data, first, config, job.folder, mode="resume", progress=progress)


def test_recipe_of_the_user(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = make_run(tmp_path, teacher, recipe=Twice())
    run_collect(run, quiet=True)
    run_distill(run, quiet=True)
    assert (tmp_path / "students" / "mlp" / "seed-0" / "policy.json").exists()
    with pytest.raises(ConfigError, match=r"recipe\.epochs was 2, now it is 3"):
        run_distill(dataclasses.replace(run, recipe=Twice(epochs=3)), mode="resume", quiet=True)


@pytest.mark.parametrize("verify", [True, False])
def test_teacher_is_checked_unless_verify_is_false(
    verify: bool, tmp_path: Path, teacher: NetworkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CheckedError(Exception):
        pass

    def check(*arguments: Any) -> None:
        raise CheckedError

    monkeypatch.setattr("rldistill.run.jobs.quick_check", check)
    run = make_run(tmp_path / "run", teacher)
    if verify:
        for stage in (run_all, run_collect):
            with pytest.raises(CheckedError):
                stage(run, quiet=True)
    else:
        run_all(dataclasses.replace(run, verify=False), quiet=True)


def test_errors_name_python_arguments(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = make_run(tmp_path / "run", teacher)
    with pytest.raises(ConfigError, match=r"no dataset yet.*run_collect\(run\)"):
        run_distill(run, quiet=True)
    with pytest.raises(ConfigError, match=r"no student yet.*run_distill\(run\)"):
        run_evaluate(run, quiet=True)
    with pytest.raises(ConfigError, match="give a TrainConfig"):
        run_train(run, quiet=True)
    run_collect(run, quiet=True)
    for stage in (run_all, run_collect, run_distill, run_evaluate):
        with pytest.raises(ConfigError, match=r"^mode: expected one of new, resume, overwrite, found 'resum'\."):
            stage(run, mode="resum", quiet=True)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"^mode: expected one of new, overwrite, found 'resume'"):
        relabel(run.dataset_folder, teacher, tmp_path / "relabeled", mode="resume")
