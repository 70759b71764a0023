"""The stages of a run, one function each, and all of them in order."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from rldistill.collection.collect import collect, spec_of_data
from rldistill.core.device import resolve_device
from rldistill.core.errors import ConfigError, NothingLearnedError
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.distillation.distill import require_fit
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.efficiency import Curve
from rldistill.evaluation.evaluate import PolicyRuns, evaluate
from rldistill.evaluation.verify import quick_check
from rldistill.io.atomic import Mode, read_json, require_mode
from rldistill.io.jsonl import read_jsonl
from rldistill.io.progress import Progress, track
from rldistill.losses.objective import temperature_of
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes import born_again, dagger, from_reward, offline, on_policy
from rldistill.recipes.config import FROM_REWARD_ALONE, BornAgain, Dagger, Offline, OnPolicy
from rldistill.recipes.job import Run
from rldistill.recipes.student_folder import student_inputs
from rldistill.reporting import evaluation_table, robustness_table, verdict, write_report
from rldistill.run.folder import noted
from rldistill.run.teachers import load_fitting
from rldistill.students.features import TeacherFeatures
from rldistill.students.storage import load_native
from rldistill.teachers.fingerprint import fingerprint
from rldistill.teachers.load import ZOO, SavedTeacher, TeacherEnsemble, load_policy, trained_elsewhere
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import train_teacher

DISTIL: dict[type, Callable[[Run, Policy, Dataset, str, int, Mode, Progress], NetworkPolicy]] = {
    Offline: offline.distill_student,
    Dagger: dagger.distill_student,
    OnPolicy: on_policy.distill_student,
    BornAgain: born_again.distill_student,
}
"""Recipes that learn from what was collected; the others learn from reward."""


def run_all(run: Run, mode: Mode = "new", quiet: bool = False, verify: bool = True) -> Path:
    """Train or load the teacher, collect, distil, evaluate, report; returns the report's path."""
    for stage, config in (("collect", run.collect), ("distill", run.distill), ("evaluate", run.evaluate)):
        resolve_device(config.device, f"{stage}.device")  # before there is anything to wait for
    if isinstance(run.teacher, TrainConfig):
        run_train(run, mode, quiet)
    if not isinstance(run.recipe, FROM_REWARD_ALONE):
        run_collect(run, mode, quiet)
    run_distill(run, mode, quiet)
    run_evaluate(run, mode, quiet)
    return run_report(run)


def run_train(run: Run, mode: Mode = "new", quiet: bool = False) -> Policy:
    """Train the run's teacher into `teacher/`."""
    if not isinstance(run.teacher, TrainConfig):
        raise ConfigError(f"teacher: {run.document['teacher']} is there already; to train one, give teacher.train")
    with noted(run, "teacher"), track("train teacher", "steps", quiet) as report:
        return train_teacher(run.env, run.teacher, run.folder / "teacher", run.seed, mode=mode, progress=report)


def run_collect(run: Run, mode: Mode = "new", quiet: bool = False) -> Dataset:
    """Let the teacher act, into `dataset/`; one from elsewhere is looked at first."""
    if mode == "overwrite" or not (run.folder / "dataset" / "manifest.json").exists():
        _require_students(with_loaded_features(run), load_teacher(run))
        if type(run.recipe) not in DISTIL:
            from_reward.guidance_of(run, load_teacher(run))
        if run.verify:
            _check_teacher(run)
    with noted(run, "dataset"), track("collect", "steps", quiet) as report:
        return collect(
            run.env,
            load_teacher(run),
            run.collect,
            run.folder / "dataset",
            seed=run.seed,
            mode=mode,
            progress=report,
        )


def _require_students(run: Run, teacher: Policy) -> None:
    """Raise, before anything is collected, for students that cannot learn what is asked."""
    if type(run.recipe) not in DISTIL:
        from_reward.require_learnable(run, teacher)
        return
    spec = spec_of_data(run.env, teacher)
    for student in run.students.values():
        require_fit(student, run.distill, spec)
    if isinstance(run.recipe, BornAgain):
        born_again.require_next(run, spec)


def run_distill(run: Run, mode: Mode = "new", quiet: bool = False) -> None:
    """Distil every student with every training seed, into `students/<name>/seed-<n>/`."""
    with noted(run, "students", "controls"):
        _distill_all(run, mode, quiet)


def _distill_all(run: Run, mode: Mode, quiet: bool) -> None:
    run = with_loaded_features(run)
    teacher = load_teacher(run)
    if mode == "overwrite":  # or a wrong word would cost what is there
        _require_students(run, teacher)
    unit = "epochs" if type(run.recipe) in DISTIL else "steps"
    dataset: Dataset | None = None
    if not isinstance(run.recipe, FROM_REWARD_ALONE):
        if not (run.folder / "dataset" / "manifest.json").exists():
            raise ConfigError(f"{run.folder / 'dataset'}: there are no data yet; run `rldistill collect` first")
        Manifest.read(run.folder / "dataset").require_teacher(fingerprint(teacher))
        dataset = Dataset.read([run.folder / "dataset"], run.collect.gamma, memory_gb=run.collect.memory_gb)
    failed: dict[str, NothingLearnedError] = {}
    for name in run.students:
        try:
            for seed in run.seeds:
                with track(f"distil {name}, seed {seed}", unit, quiet) as report:
                    distill_one(run, teacher, dataset, name, seed, mode, report)
        except NothingLearnedError as error:
            failed[name] = error
            continue
        for seed in run.seeds if run.control else ():
            steps = _steps_of(run, name)
            with track(f"control of {name}, seed {seed}", "steps", quiet) as report:
                from_reward.control(run, teacher, name, seed, steps, mode, report)
    if failed:
        others = f" The other students are there; without {', '.join(failed)} among them, go on with --resume."
        raise NothingLearnedError(str(next(iter(failed.values()))) + others * (len(failed) < len(run.students)))


def distill_one(
    run: Run,
    teacher: Policy,
    dataset: Dataset | None,
    name: str,
    seed: int,
    mode: Mode,
    progress: Progress,
) -> NetworkPolicy:
    """One student with one training seed, by the run's recipe."""
    by = DISTIL.get(type(run.recipe))
    if by is None:
        return from_reward.distill_student(run, teacher, dataset, name, seed, mode, progress)
    assert dataset is not None
    return by(run, teacher, dataset, name, seed, mode, progress)


def run_evaluate(run: Run, mode: Mode = "new", quiet: bool = False) -> dict[str, Any]:
    """Play teacher, students and a random policy on the same fresh seeds, into `evaluation.json` and `videos/`."""
    with noted(run, "students", "videos"):
        return _evaluate_all(run, mode, quiet)


def _evaluate_all(run: Run, mode: Mode, quiet: bool) -> dict[str, Any]:
    path = run.folder / "evaluation.json"
    require_mode(mode)
    if path.exists() and mode == "new":
        raise ConfigError(f'{path} exists. Evaluate again with mode="resume" (--resume) or "overwrite" (--overwrite).')
    trained = run.teacher.total_steps if isinstance(run.teacher, TrainConfig) else 0
    run, teacher = with_loaded_features(run), load_teacher(run)
    for name in run.students:
        for seed in run.seeds:
            student_inputs(run, name, teacher).require_same(run.folder / "students" / name / f"seed-{seed}")
    entrants = {
        "teacher": PolicyRuns("teacher", {None: teacher}, trained),
        **{name: _student_entrant(run, name) for name in run.students},
        **{f"{name}-scratch": _control_entrant(run, name) for name in run.students if run.control},
        "random": PolicyRuns("random", {None: None}, 0),
    }
    with track("evaluate", "episodes", quiet) as report:
        evaluation = evaluate(
            run.env,
            entrants,
            run.evaluate,
            run.folder,
            seed=run.seed,
            dataset=_collected(run),
            temperature=temperature_of(run.distill.losses),
            curves=_curves(run),
            progress=report,
        )
    doubts = [f"warning: {doubt['name']}: {doubt['text']}" for doubt in evaluation["warnings"]]
    tables = filter(None, (evaluation_table(evaluation), robustness_table(evaluation)))
    Console().print(*tables, verdict(evaluation), *doubts, sep="\n")
    return evaluation


def run_report(run: Run) -> Path:
    """Write `report.html` and `MODEL_CARD.md` from what the other stages left."""
    path = write_report(run.folder)
    print(f"report: {path}")
    return path


def load_teacher(run: Run) -> Policy:
    """The run's teacher, trained or from elsewhere."""
    if isinstance(run.teacher, TrainConfig):
        if not (run.folder / "teacher" / "policy.json").exists():
            raise ConfigError(f"{run.folder / 'teacher'}: there is no teacher yet; run `rldistill train` first")
        return load_policy(run.folder / "teacher")
    if isinstance(run.teacher, SavedTeacher):
        return load_fitting(run.teacher, run.env)
    return run.teacher.load(spec_from_env(run.env.view_of("teacher")))


def with_loaded_features(run: Run) -> Run:
    """Return the run with the network in place of its path wherever a student takes a network's features.

    Only here are such paths resolved: a run file is trusted like a Makefile, a stored student is data.
    """
    students = dict(run.students)
    for name, student in run.students.items():
        own = getattr(student, "features", None)
        if not isinstance(own, TeacherFeatures):
            continue
        features = own if own.policy else TeacherFeatures(_path_of_teacher(run, name))
        spec = spec_from_env(run.env.view_of("student"))
        students[name] = dataclasses.replace(student, features=features.load(SavedTeacher(features.policy).load(spec)))  # type: ignore[arg-type]
    return dataclasses.replace(run, students=students)


def _path_of_teacher(run: Run, student: str) -> str:
    if isinstance(run.teacher, TeacherEnsemble):
        raise ConfigError(f"students.{student}.features.policy: an ensemble has no hidden layer; name one of its files")
    return str(run.folder / "teacher") if isinstance(run.teacher, TrainConfig) else run.teacher.path


def _check_teacher(run: Run) -> None:
    """The short form of `rldistill teachers verify`: a few hundred steps, and a warning for each usual mistake."""
    if isinstance(run.teacher, TrainConfig) or (
        isinstance(run.teacher, SavedTeacher) and run.teacher.path.startswith(ZOO)
    ):
        return
    doubts = quick_check(load_teacher(run), run.env, run.seed)
    if isinstance(run.teacher, SavedTeacher):
        doubts += filter(None, [trained_elsewhere(run.teacher.path, run.env.id)])
    for text in doubts:
        warnings.warn(f"the teacher looks wrong: {text}; `rldistill teachers verify` says more", stacklevel=2)


def _student_entrant(run: Run, name: str) -> PolicyRuns:
    return PolicyRuns("student", _policies(run, run.folder / "students" / name), _steps_of(run, name))


def _control_entrant(run: Run, name: str) -> PolicyRuns:
    place = run.folder / "controls" / name
    steps = max(_reward_steps(place / f"seed-{seed}") for seed in run.seeds)
    return PolicyRuns("student", _policies(run, place), steps)


def _policies(run: Run, place: Path) -> dict[int | None, Policy | None]:
    folders = {seed: place / f"seed-{seed}" for seed in run.seeds}
    missing = [folder for folder in folders.values() if not (folder / "policy.json").exists()]
    if missing:
        raise ConfigError(f"{missing[0]}: there is no student yet; run `rldistill distill` first")
    return {seed: load_native(folder) for seed, folder in folders.items()}


def _curves(run: Run) -> dict[str, Curve]:
    """Mean returns against environment steps of all that learned from reward, the teacher's data counted."""
    curves: dict[str, Curve] = {}
    if isinstance(run.teacher, TrainConfig):
        curves["teacher"] = _scores(run.folder / "teacher" / "curve.jsonl", "mean", 0)
    for name in run.students:
        curves[name] = _mean_curve(run, run.folder / "students" / name, _collected_steps(run))
        if run.control:
            curves[f"{name}-scratch"] = _mean_curve(run, run.folder / "controls" / name, 0)
    return {name: curve for name, curve in curves.items() if curve}


def _mean_curve(run: Run, place: Path, before: int) -> Curve:
    """Of all training seeds, at the steps at which each was scored."""
    seeds = [dict(_scores(place / f"seed-{seed}" / "metrics.jsonl", "score", before)) for seed in run.seeds]
    common = sorted(set.intersection(*map(set, seeds)))
    return [(steps, sum(scores[steps] for scores in seeds) / len(seeds)) for steps in common]


def _scores(path: Path, column: str, before: int) -> Curve:
    return [(before + row["step"], row[column]) for row in read_jsonl(path) if row.get(column) is not None]


def _collected(run: Run) -> Dataset | None:
    """What the teacher said of its own states, unless nothing was collected."""
    if isinstance(run.recipe, FROM_REWARD_ALONE) or not (run.folder / "dataset" / "manifest.json").exists():
        return None
    return Dataset.read([run.folder / "dataset"], run.collect.gamma, memory_gb=run.collect.memory_gb)


def _collected_steps(run: Run) -> int:
    """Environment steps of the teacher's data, unless the recipe needs none and they are of something else."""
    folder = run.folder / "dataset"
    return 0 if isinstance(run.recipe, FROM_REWARD_ALONE) or not folder.exists() else Manifest.read(folder).num_steps


def _steps_of(run: Run, name: str) -> int:
    """Environment steps that a student took: those of the teacher's data, its own rounds, its learning from reward."""
    folders = [run.folder / "students" / name / f"seed-{seed}" for seed in run.seeds]
    return _collected_steps(run) + max(
        _own_steps(folder) + _reward_steps(folder) for folder in folders if folder.exists()
    )


def _own_steps(folder: Path) -> int:
    dataset = folder / "dataset"
    return Manifest.read(dataset).num_steps if dataset.exists() else 0


def _reward_steps(folder: Path) -> int:
    document = folder / "policy.json"
    return int(read_json(document)["provenance"].get("env_steps", 0)) if document.exists() else 0
