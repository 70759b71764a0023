"""Policies, environment steps and learning curves in the folder of a run."""

from __future__ import annotations

from pathlib import Path

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.data.manifest import Manifest
from rldistill.evaluation.episodes import PolicyRuns
from rldistill.evaluation.evaluate import Curve
from rldistill.io.atomic import read_json, read_jsonl
from rldistill.recipes.job import Run
from rldistill.reporting.sections import CONTROL_SUFFIX
from rldistill.students.storage import load_native
from rldistill.teachers.training.config import TrainConfig


def require_result(file: Path, noun: str, verb: str) -> None:
    """Raise ConfigError if an earlier stage has not written its result."""
    if not file.exists():
        command = f"run_{verb}(run), or `rldistill {verb} FILE`"
        raise ConfigError(f"{file.parent}: there is no {noun} yet. {verb.capitalize()} it first: {command}.")


def student_runs(run: Run, name: str) -> PolicyRuns:
    """Return the policies of a student."""
    return PolicyRuns("student", _policies(run, run.out / "students" / name), student_steps(run, name))


def control_runs(run: Run, name: str) -> PolicyRuns:
    """Return the policies of the control of a student."""
    folder = run.out / "controls" / name
    steps = max(_steps_from_reward(folder / f"seed-{seed}") for seed in run.seeds)
    return PolicyRuns("student", _policies(run, folder), steps)


def student_steps(run: Run, name: str) -> int:
    """Return the environment steps of a student: of the teacher's data, of its own rounds, and from reward."""
    folders = [run.out / "students" / name / f"seed-{seed}" for seed in run.seeds]
    steps = [_steps_collected(folder / "dataset") + _steps_from_reward(folder) for folder in folders if folder.exists()]
    return _teacher_steps(run) + max(steps)


def training_curves(run: Run) -> dict[str, Curve]:
    """Return mean returns against environment steps for all policies that learned from reward."""
    curves: dict[str, Curve] = {}
    if isinstance(run.teacher, TrainConfig):
        curves["teacher"] = _curve(run.out / "teacher" / "curve.jsonl", "mean", 0)
    for name in run.students:
        curves[name] = _mean_curve(run, run.out / "students" / name, _teacher_steps(run))
        if run.control != "none":
            curves[name + CONTROL_SUFFIX] = _mean_curve(run, run.out / "controls" / name, 0)
    return {name: curve for name, curve in curves.items() if curve}


def _policies(run: Run, folder: Path) -> dict[int | None, Policy | None]:
    folders = {seed: folder / f"seed-{seed}" for seed in run.seeds}
    for path in folders.values():
        require_result(path / "policy.json", "student", "distill")
    return {seed: load_native(path) for seed, path in folders.items()}


def _mean_curve(run: Run, folder: Path, first_step: int) -> Curve:
    """Return the mean over all training seeds, at the steps at which each seed has a score."""
    seeds = [dict(_curve(folder / f"seed-{seed}" / "metrics.jsonl", "score", first_step)) for seed in run.seeds]
    common = sorted(set.intersection(*map(set, seeds)))
    return [(steps, sum(scores[steps] for scores in seeds) / len(seeds)) for steps in common]


def _curve(path: Path, column: str, first_step: int) -> Curve:
    return [(first_step + row["step"], row[column]) for row in read_jsonl(path) if row.get(column) is not None]


def _teacher_steps(run: Run) -> int:
    return _steps_collected(run.dataset_folder) if run.recipe.needs_dataset else 0


def _steps_collected(folder: Path) -> int:
    return Manifest.read(folder).num_steps if folder.exists() else 0


def _steps_from_reward(folder: Path) -> int:
    document = folder / "policy.json"
    return int(read_json(document)["provenance"].get("env_steps", 0)) if document.exists() else 0
