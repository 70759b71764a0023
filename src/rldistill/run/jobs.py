"""Teachers and students of a run, as its stages need them, and warnings about them."""

import dataclasses
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from rldistill.core.errors import ConfigError, RLDistillError
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.data.manifest import Manifest
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.check_env import require_env
from rldistill.evaluation.verify import fit_to_env, quick_check
from rldistill.recipes.job import Run, StudentJob
from rldistill.recipes.tasks import TasksJob, task_runs
from rldistill.run.folder import require_result
from rldistill.students.features import TeacherFeatures
from rldistill.teachers.committee import load_committee
from rldistill.teachers.fingerprint import fingerprint
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble, TeamTeacher, load_policy, training_remarks
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.zoo import ZOO


def student_job(run: Run, with_data: bool = True) -> StudentJob:
    """Return the job of a student without name and seed, with the dataset of the teacher if the recipe needs one."""
    if run.tasks:
        parts = {task: student_job(part, with_data) for task, part in task_runs(run).items()}
        return TasksJob(run, cast(Any, None), None, "", 0, templates=parts)
    warn_of_env(run.env)
    teacher, dataset = load_teacher(run), None
    if with_data and run.recipe.needs_dataset:
        require_result(run.dataset_folder / "manifest.json", "dataset", "collect")
        Manifest.read(run.dataset_folder).require_teacher(fingerprint(teacher))
        dataset = run.read_dataset()
    return StudentJob(run, teacher, dataset, "", 0)


def load_teacher(run: Run) -> Policy:
    """Load the teacher of a run."""
    if isinstance(run.teacher, TrainConfig):
        require_result(run.out / "teacher" / "policy.json", "teacher", "train")
        return load_policy(run.out / "teacher")
    if run.teacher is None:
        return load_committee(run.teachers, run.env)
    if not isinstance(run.teacher, SavedTeacher | TeacherEnsemble | TeamTeacher):
        return run.teacher
    teacher = run.teacher.load(spec_from_env(run.env.view_of("teacher")))
    if isinstance(run.teacher, SavedTeacher):
        fit_to_env(teacher, run.env, run.teacher.path)
    return teacher


def load_teachers(parts: Mapping[str, Run]) -> dict[str, Policy]:
    """Load the teacher of each task; its errors begin with the name of the task."""
    teachers = {}
    for task, part in parts.items():
        try:
            teachers[task] = load_teacher(part)
        except RLDistillError as error:
            raise type(error)(f"tasks.{task}.teacher: {str(error).removeprefix('teacher: ')}") from None
    return teachers


def with_loaded_features(run: Run) -> Run:
    """Return the run with a loaded network in place of the path of each student that uses a network's features.

    Such paths are resolved only here: a run file is trusted like a Makefile, a stored student is data.
    """
    teacher_path = run.teacher.path if isinstance(run.teacher, SavedTeacher) else ""
    if isinstance(run.teacher, TrainConfig):
        teacher_path = str(run.out / "teacher")
    students = dict(run.students)
    for name, student in run.students.items():
        features = getattr(student, "features", None)
        if isinstance(features, TeacherFeatures):
            path = features.policy or teacher_path
            if not path:
                raise ConfigError(
                    f"students.{name}.features.policy: this teacher has no file. Name the file of a network."
                )
            network = SavedTeacher(path).load(spec_from_env(run.env.view_of("student")))
            students[name] = dataclasses.replace(cast(Any, student), features=TeacherFeatures(path).load(network))
    return dataclasses.replace(run, students=students)


@lru_cache
def warn_of_env(env: EnvConfig) -> None:
    """Warn once of everything that is suspicious about an environment; raise ConfigError if it will not work."""
    for text in require_env(env):
        warnings.warn(text, stacklevel=3)


def warn_of_mistakes(run: Run, teacher: Policy) -> None:
    """Warn about common mistakes in a teacher that was trained elsewhere, after a few hundred steps."""
    path = run.teacher.path if isinstance(run.teacher, SavedTeacher) else ""
    if isinstance(run.teacher, TrainConfig) or path.startswith(ZOO):
        return
    problems, remarks = quick_check(teacher, run.env, run.seed)
    for remark in remarks:
        warnings.warn(f"the teacher: {remark}", stacklevel=3)
    for problem in [*problems, *(training_remarks(path, run.env) if path else [])]:
        warnings.warn(f"the teacher looks wrong: {problem}. See `rldistill teachers verify`.", stacklevel=3)
