"""The stages of a run, one function each, and all of them in order."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from rldistill.collection.collect import collect
from rldistill.core.errors import ConfigError, NothingLearnedError
from rldistill.core.policy import Policy, resolve_device
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.episodes import VALIDATION, PlayConfig, PolicyRuns, play
from rldistill.evaluation.evaluate import RunContext, evaluate
from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.verify import quick_check
from rldistill.io.atomic import Mode, read_json, require_mode
from rldistill.io.progress import track
from rldistill.losses.objective import given_temperature
from rldistill.recipes.from_reward import train_control
from rldistill.recipes.job import Run, StudentJob
from rldistill.reporting import write_report
from rldistill.reporting.sections import CONTROL_SUFFIX
from rldistill.run.export import run_export
from rldistill.run.folder import record_run
from rldistill.run.results import control_runs, require_result, student_runs, student_steps, training_curves
from rldistill.run.teachers import load_fitting
from rldistill.students.features import TeacherFeatures
from rldistill.teachers.fingerprint import fingerprint
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble, load_policy, other_training_env
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import train_teacher
from rldistill.teachers.zoo import ZOO


def run_all(run: Run, mode: Mode = "new", quiet: bool = False) -> Path:
    """Run all stages of a run and return the path of the report.

    Args:
        run: Run with `verify=False` to skip the check of a teacher that was trained elsewhere.
        mode: "new" refuses stages that exist, "resume" continues them, "overwrite" discards them.
        quiet: True to show no progress.
    """
    require_mode(mode)
    for stage, config in (("collect", run.collect), ("distill", run.distill), ("evaluate", run.evaluate)):
        resolve_device(config.device, f"{stage}.device")  # a missing device is an error now, not after hours
    if isinstance(run.teacher, TrainConfig):
        run_train(run, mode, quiet)
    if run.recipe.needs_dataset:
        run_collect(run, mode, quiet)
    run_distill(run, mode, quiet)
    run_evaluate(run, mode, quiet)
    if run.export is not None:
        run_export(run, mode, quiet)
    return run_report(run)


def run_train(run: Run, mode: Mode = "new", quiet: bool = False) -> Policy:
    """Train the teacher into `teacher/`."""
    if not isinstance(run.teacher, TrainConfig):
        raise ConfigError(
            f"teacher: {run.document.get('teacher', run.teacher)} is trained already. To train one, give a "
            "TrainConfig (teacher.train in a run file)."
        )
    require_mode(mode)
    with record_run(run, "teacher"), track("train teacher", "steps", quiet) as progress:
        folder = run.out / "teacher"
        teacher = train_teacher(run.env, run.teacher, folder, run.seed, mode=mode, progress=progress)
    mean = read_json(folder / "policy.json")["provenance"]["mean_return"]
    random_play = play(run.env, None, run.teacher.eval_episodes, PlayConfig(run.seed, VALIDATION)).returns
    print(f"teacher: {folder} (mean return {mean:.4g}, random play {random_play.mean():.4g})")
    return teacher


def run_collect(run: Run, mode: Mode = "new", quiet: bool = False) -> Dataset:
    """Collect the dataset of the teacher into `dataset/`."""
    require_mode(mode)
    teacher = load_teacher(run)
    if mode == "overwrite" or not (run.dataset_folder / "manifest.json").exists():
        run.recipe.check(with_loaded_features(run), teacher)
        if run.verify:
            _check_teacher(run, teacher)
    with record_run(run, "dataset"), track("collect", "steps", quiet) as progress:
        return collect(run.env, teacher, run.collect, run.dataset_folder, seed=run.seed, mode=mode, progress=progress)


def run_distill(run: Run, mode: Mode = "new", quiet: bool = False) -> None:
    """Distill every student with every training seed into `students/NAME/seed-N/`, and train the controls.

    A student that learns nothing does not stop the others.

    Raises:
        NothingLearnedError: a student learned nothing.
    """
    require_mode(mode)
    with record_run(run, "students", "controls"):
        run = with_loaded_features(run)
        teacher = load_teacher(run)
        dataset = _read_dataset(run, teacher) if run.recipe.needs_dataset else None
        if mode == "overwrite":  # an error in the settings must not cost the students that exist
            run.recipe.check(run, teacher)
        failed: dict[str, NothingLearnedError] = {}
        for name in run.students:
            try:
                for seed in run.seeds:
                    unit = "epochs" if run.recipe.learner is None else "steps"
                    with track(f"distill {name}, seed {seed}", unit, quiet) as progress:
                        run.recipe.distill(StudentJob(run, teacher, dataset, name, seed), mode, progress)
            except NothingLearnedError as error:
                failed[name] = error
                continue
            for seed in run.seeds if run.control != "none" else ():
                job = StudentJob(run, teacher, dataset, name, seed)
                with track(f"control of {name}, seed {seed}", "steps", quiet) as progress:
                    train_control(job, student_steps(run, name), mode, progress)
        if failed:
            others = (
                f" The other students are distilled. To evaluate them, leave out {', '.join(failed)} and continue with "
                'mode="resume" (--resume).'
            )
            raise NothingLearnedError(str(next(iter(failed.values()))) + others * (len(failed) < len(run.students)))


def run_evaluate(run: Run, mode: Mode = "new", quiet: bool = False) -> Evaluation:
    """Evaluate teacher, students and random play on the same episodes, into `evaluation.json` and `videos/`.

    Raises:
        ConfigError: a student is missing, or it was made from other inputs than those of the run.
    """
    require_mode(mode)
    path = run.out / "evaluation.json"
    if path.exists() and mode == "new":
        raise ConfigError(f'{path} exists. Evaluate again with mode="resume" (--resume) or "overwrite" (--overwrite).')
    with record_run(run, "students", "videos"):
        trained = run.teacher.total_steps if isinstance(run.teacher, TrainConfig) else 0
        run = with_loaded_features(run)
        teacher = load_teacher(run)
        for name in run.students:
            for seed in run.seeds:
                job = StudentJob(run, teacher, None, name, seed)
                job.inputs().require_same(job.folder)
        policies = {
            "teacher": PolicyRuns("teacher", {None: teacher}, trained),
            **{name: student_runs(run, name) for name in run.students},
            **{name + CONTROL_SUFFIX: control_runs(run, name) for name in run.students if run.control != "none"},
        }
        has_dataset = run.recipe.needs_dataset and (run.dataset_folder / "manifest.json").exists()
        with track("evaluate", "episodes", quiet) as progress:
            dataset = run.read_dataset() if has_dataset else None
            context = RunContext(run.seed, dataset, given_temperature(run.distill.losses), training_curves(run))
            evaluation = evaluate(run.env, policies, run.evaluate, run.out, context, progress)
    Console().print(evaluation)
    return evaluation


def run_report(run: Run) -> Path:
    """Write `report.html` and `MODEL_CARD.md` from the results of the other stages."""
    path = write_report(run.out)
    print(f"report: {path}")
    return path


def load_teacher(run: Run) -> Policy:
    """Load the teacher of a run."""
    if isinstance(run.teacher, TrainConfig):
        require_result(run.out / "teacher" / "policy.json", "teacher", "train")
        return load_policy(run.out / "teacher")
    if isinstance(run.teacher, SavedTeacher):
        return load_fitting(run.teacher, run.env)
    if isinstance(run.teacher, TeacherEnsemble):
        return run.teacher.load(spec_from_env(run.env.view_of("teacher")))
    return run.teacher


def with_loaded_features(run: Run) -> Run:
    """Return the run with a loaded network in place of the path of each student that uses a network's features.

    Such paths are resolved only here: a run file is trusted like a Makefile, a stored student is data.
    """
    students = dict(run.students)
    for name, student in run.students.items():
        features = getattr(student, "features", None)
        if isinstance(features, TeacherFeatures):
            features = features if features.policy else TeacherFeatures(_path_of_teacher(run, name))
            network = SavedTeacher(features.policy).load(spec_from_env(run.env.view_of("student")))
            students[name] = dataclasses.replace(cast(Any, student), features=features.load(network))
    return dataclasses.replace(run, students=students)


def _path_of_teacher(run: Run, student: str) -> str:
    if isinstance(run.teacher, TrainConfig):
        return str(run.out / "teacher")
    if isinstance(run.teacher, SavedTeacher):
        return run.teacher.path
    raise ConfigError(f"students.{student}.features.policy: this teacher has no file. Name the file of a network.")


def _read_dataset(run: Run, teacher: Policy) -> Dataset:
    require_result(run.dataset_folder / "manifest.json", "dataset", "collect")
    Manifest.read(run.dataset_folder).require_teacher(fingerprint(teacher))
    return run.read_dataset()


def _check_teacher(run: Run, teacher: Policy) -> None:
    """Warn about common mistakes in a teacher that was trained elsewhere, after a few hundred steps."""
    path = run.teacher.path if isinstance(run.teacher, SavedTeacher) else None
    if isinstance(run.teacher, TrainConfig) or (path or "").startswith(ZOO):
        return
    problems = quick_check(teacher, run.env, run.seed)
    if path is not None:
        problems += filter(None, [other_training_env(path, run.env.id)])
    for problem in problems:
        warnings.warn(f"the teacher looks wrong: {problem}. See `rldistill teachers verify`.", stacklevel=3)
