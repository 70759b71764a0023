"""Runs of several tasks: a run for each of them, and the job of a student that they share."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

from rldistill.collection.collect import collected_spec
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, RLDistillError
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.io.provenance import provenance
from rldistill.io.stage_inputs import StageInputs
from rldistill.losses.objective import policy_terms, student_spec
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import RECIPES, Data, Run, StudentJob
from rldistill.students.multi_task import MultiTask, MultiTaskPolicy
from rldistill.students.storage import save_policy

MIN_GAP = 0.05
"""Smallest distance from the teacher's score: validation episodes are few, and so every task gets some steps."""


def task_runs(run: Run) -> dict[str, Run]:
    """Return the run of each task in `tasks/NAME/`, whose students are the policies for this task.

    Raises:
        ConfigError: The recipe, the control or a student is for one task only.
    """
    if not run.tasks:
        return {}
    _require_families(run)
    students = {name: cast(MultiTask, student).student for name, student in run.students.items()}
    return {task: _task_run(run, task, students) for task in run.tasks}


def _task_run(run: Run, task: str, students: dict[str, Any]) -> Run:
    out, known = run.out / "tasks" / task, run.document
    document: dict[str, Any] = {}
    if known:  # so that the config.yaml of the task is a run file of its own
        inner = {
            name: student.get("student", "mlp") if isinstance(student, dict) else "mlp"
            for name, student in known.get("students", {}).items()
        }
        document = {key: value for key, value in known.items() if key != "tasks"}
        if "distill" in document:
            document["distill"] = {key: value for key, value in document["distill"].items() if key != "balance"}
        document |= {**known["tasks"][task], "name": task, "out": str(out), "students": inner}
        if (sample := document.pop("sample", None)) is not None:
            document |= {key: {**document.get(key, {}), "sample": sample} for key in ("collect", "evaluate")}
    own = run.tasks[task]
    changes: Any = {"env": own.env, "teacher": own.teacher, "tasks": {}, "name": task, "out": out}
    changes["distill"] = replace(run.distill, balance="equal")
    if own.sample is not None:
        changes |= {key: replace(getattr(run, key), sample=own.sample) for key in ("collect", "evaluate")}
    return replace(run, **changes, students=students, document=document)


def require_one_task(run: Run, verb: str) -> None:
    """Raise ConfigError if a run has several tasks."""
    if run.tasks:
        raise ConfigError(
            f"tasks: `rldistill {verb}` is for one task. Use the run file of one: "
            f"{run.out}/tasks/{next(iter(run.tasks))}/config.yaml."
        )


def require_tasks(run: Run, teachers: Mapping[str, Policy]) -> None:
    """Raise an error, before data are collected, if the students cannot learn these tasks from their teachers."""
    specs, terms = {}, policy_terms(run.distill.losses)
    for task, part in task_runs(run).items():
        try:
            run.recipe.check(part, teachers[task])
        except RLDistillError as error:
            raise type(error)(f"tasks.{task}: {error}") from None
        specs[task] = student_spec(collected_spec(part.env, teachers[task]), terms)
    for student in run.students.values():
        dataclasses.replace(cast(MultiTask, student), specs=specs).build(next(iter(specs.values())))


def _require_families(run: Run) -> None:
    """Raise ConfigError for a recipe or a student that has one task only."""
    if not run.recipe.several_tasks:
        known = ", ".join(name for name, recipe in RECIPES.items() if recipe.several_tasks)
        raise ConfigError(f"recipe: {type(run.recipe).__name__} is for one task. Use one of {known}.")
    if getattr(run.recipe, "initial", None) is not None:
        raise ConfigError("recipe.initial: a student of several tasks begins with new weights. Remove it.")
    if run.control != "none":
        raise ConfigError("control: a student of several tasks has no control. Use control: none.")
    for name, student in run.students.items():
        if not isinstance(student, MultiTask):
            raise ConfigError(
                f"students.{name}: a run of several tasks takes students of the type multi_task. Use {{type: "
                "multi_task, student: {type: mlp}}."
            )


@dataclass(frozen=True)
class TasksJob(StudentJob):
    """One student of several tasks with one training seed, made of a job for each task.

    Attributes:
        templates: Jobs of the tasks, for any student and any seed.
        lead: Returns of the teacher and of random play in validation episodes, by task; played when needed.
    """

    templates: Mapping[str, StudentJob] = field(default_factory=dict)
    lead: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, StudentJob]:
        """Jobs of the tasks."""
        return {task: replace(part, name=self.name, seed=self.seed) for task, part in self.templates.items()}

    @property
    def data(self) -> dict[str, Dataset]:  # type: ignore[override]
        """Dataset of each task."""
        return {task: part.data for task, part in self.parts.items()}

    def in_one_process(self) -> Self:
        """Return the job whose tasks start no other processes."""
        parts = {task: part.in_one_process() for task, part in self.templates.items()}
        return replace(super().in_one_process(), templates=parts)

    def check(self) -> None:
        """Raise the errors of `require_tasks`."""
        require_tasks(self.run, {task: part.teacher for task, part in self.parts.items()})

    def inputs(self) -> StageInputs:
        """Return all that the student depends on except its seed."""
        values: dict[str, Any] = {"tasks": [*self.parts], "recipe": self.run.recipe, "distill": self.run.distill}
        values[f"students.{self.name}"] = self.student
        for task, part in self.parts.items():
            own = part.inputs().values
            values |= {f"tasks.{task}.{key}": own[key] for key in ("teacher", "dataset") if key in own}
        return StageInputs("distill", values)

    def open(self, mode: Mode) -> bool:
        """Prepare the folders of the student, in the run and in the tasks; return True if the student is there."""
        for part in self.parts.values():
            part.open(mode)
        return super().open(mode)

    def distill(self, mode: Mode, progress: Progress) -> NetworkPolicy:
        """Distill the student, and store its policy for each task in the folder of the task."""
        student = super().distill(mode, progress)
        assert isinstance(student, MultiTaskPolicy)
        for task, part in self.parts.items():
            if not (part.folder / "policy.json").exists():
                save_policy(student.policy_of(task), part.folder, provenance(self.seed))
        return student

    def collect_round(
        self,
        student: NetworkPolicy,
        config: CollectConfig,
        number: int,
        newest_only: bool,
        scores: Mapping[str, float],
        progress: Progress,
    ) -> Data:
        """Collect a round in each task; with `balance: by_gap`, most steps where the score is lowest.

        Of K n steps, task k takes K n gap_k / sum_j gap_j, gap_k = max(MIN_GAP, 1 - score_k).
        """
        assert isinstance(student, MultiTaskPolicy)
        steered = scores and self.run.distill.balance == "by_gap"
        gaps = {task: max(MIN_GAP, 1 - scores[task]) if steered else 1.0 for task in self.parts}
        mean, data = sum(gaps.values()) / len(gaps), {}
        for task, part in self.parts.items():
            own = replace(config, steps=max(1, round(config.steps * gaps[task] / mean)))
            policy = student.policy_of(task)
            data[task] = cast(Any, part.collect_round(policy, own, number, newest_only, {}, progress))
        return data

    def score(self, student: NetworkPolicy, episodes: int) -> dict[str, Any]:
        """Return the mean of the normalized scores in validation episodes as `score`, and those of all `tasks`."""
        assert isinstance(student, MultiTaskPolicy)
        scores = {}
        for task, part in self.parts.items():
            if (task, episodes) not in self.lead:
                self.lead[task, episodes] = part.validate(part.teacher, episodes), part.validate(None, episodes)
            best, worst = self.lead[task, episodes]
            if best <= worst:
                raise ConfigError(
                    f"tasks.{task}.teacher: its mean return ({best:.4g}) is not higher than that of random play "
                    f"({worst:.4g}), so that a student has no score. Use another teacher."
                )
            scores[task] = (part.validate(student.policy_of(task), episodes) - worst) / (best - worst)
        return {"score": sum(scores.values()) / len(scores), "tasks": scores}
