"""Teachers and students of a run as its stages need them, warnings about them, and the fits of the students."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from rldistill.core.errors import ConfigError, NothingLearnedError, RLDistillError
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.data.manifest import Manifest
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.check_env import require_env
from rldistill.evaluation.verify import fit_to_env, quick_check
from rldistill.io.atomic import Mode
from rldistill.io.execution import SERIAL, Increments, Total, run_jobs
from rldistill.io.processes import Report
from rldistill.io.progress import Progress, track
from rldistill.io.progress_file import record_progress
from rldistill.io.storage import pull
from rldistill.recipes.from_reward import CONTROL_BUDGET, train_control
from rldistill.recipes.job import Run, StudentJob
from rldistill.recipes.tasks import TasksJob, task_runs
from rldistill.run.folder import require_result
from rldistill.students.features import TeacherFeatures
from rldistill.teachers.committee import load_committee
from rldistill.teachers.fingerprint import fingerprint
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble, TeamTeacher, load_policy, training_remarks
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.zoo import ZOO

Pair = tuple[str, int]
"""Name of a student, and a training seed."""
Fitted = tuple[str, NothingLearnedError | None]
"""Name of a student, and its error if it learned nothing."""


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
    """Warn about sampled actions of a teacher without probabilities, and about mistakes in one from elsewhere."""
    if run.evaluate.sample and teacher.spec.head.action_values:
        warnings.warn(
            "evaluate.sample: the teacher has Q values and takes its best action, but students of it sample theirs. "
            "Use false; for one of several tasks, tasks.NAME.sample.",
            stacklevel=3,
        )
    path = run.teacher.path if isinstance(run.teacher, SavedTeacher) else ""
    if isinstance(run.teacher, TrainConfig) or path.startswith(ZOO):
        return
    problems, remarks = quick_check(teacher, run.env, run.seed)
    for remark in remarks:
        warnings.warn(f"the teacher: {remark}", stacklevel=3)
    for problem in [*problems, *(training_remarks(path, run.env) if path else [])]:
        warnings.warn(f"the teacher looks wrong: {problem}. See `rldistill teachers verify`.", stacklevel=3)


@dataclasses.dataclass(frozen=True)
class Fits:
    """Distillation of the students of a run, or, with `control_steps`, their training from reward alone.

    A single fit runs in this process, so that the collections of its rounds can use the workers of the run.

    Attributes:
        template: Job without the name of a student and a training seed.
        control_steps: Environment steps of each control, by the name of the student.
    """

    template: StudentJob
    mode: Mode
    quiet: bool
    control_steps: Mapping[str, int] | None = None

    @property
    def run(self) -> Run:
        """Run of the students."""
        return self.template.run

    @property
    def pairs(self) -> list[Pair]:
        """All students with all training seeds."""
        return [(name, seed) for name in self.run.students for seed in self.run.seeds]

    def run_all(self, pairs: Sequence[Pair], failed: Container[str] = ()) -> Iterator[Fitted]:
        """Fit some pairs; yield the name of each, with its error if it learned nothing, as they finish.

        Pairs of students that have `failed`, also meanwhile, are left out.
        """
        items = (pair for pair in pairs if pair[0] not in failed)
        execution = self.run.execution
        if execution.serial or len(pairs) == 1:
            yield from (result for _, result in run_jobs(self, items, SERIAL))
            return
        own = dataclasses.replace(self, template=self.template.in_one_process())
        with track("distill" if self.control_steps is None else "controls", self.unit, self.quiet) as progress:
            total = Total(progress, sum(self.units(name) for name, _ in pairs))
            uses_gpu = self.run.distill.device != "cpu"
            for _, result in run_jobs(own.fit_beside_others, items, execution, total, uses_gpu):
                yield result
        pull(self.run.out)  # the students of other machines

    @property
    def unit(self) -> str:
        """Plural of the unit of work of a fit."""
        return "epochs" if self.control_steps is None and self.run.recipe.learner is None else "steps"

    def units(self, name: str) -> int:
        """Return the units of work of a fit, for its progress."""
        if self.control_steps is None:
            return self.run.recipe.units(self.run)
        return CONTROL_BUDGET * self.control_steps[name]

    def __call__(self, pair: Pair, report: Report) -> Fitted:
        """Fit one student with one training seed, and show its progress."""
        with track(self.title(pair), self.unit, self.quiet) as progress:
            return self.fit(pair, progress)

    def fit_beside_others(self, pair: Pair, report: Report) -> Fitted:
        """Fit one student with one training seed, report its units of work, and record them in a file of its own."""
        name, seed = pair
        with (
            record_progress(self.run.out, f"{name}-seed-{seed}"),
            track(self.title(pair), self.unit, quiet=True) as recorded,
        ):
            progress = Increments(report, self.units(name), recorded)
            result = self.fit(pair, progress)
            progress.update(1, 1)  # also without the epochs that were not needed
            return result

    def title(self, pair: Pair) -> str:
        """Return the title of a fit."""
        name, seed = pair
        return f"distill {name}, seed {seed}" if self.control_steps is None else f"control of {name}, seed {seed}"

    def fit(self, pair: Pair, progress: Progress) -> Fitted:
        """Fit one student with one training seed."""
        name, seed = pair
        pull(self.run.out)
        job = dataclasses.replace(self.template, name=name, seed=seed)
        try:
            if self.control_steps is None:
                job.distill(self.mode, progress)
            else:
                train_control(job, self.control_steps[name], self.mode, progress)
        except NothingLearnedError as error:
            return name, error
        return name, None
