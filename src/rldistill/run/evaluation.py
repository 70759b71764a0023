"""Evaluation of a run: of its teacher and students, or of its students in each of several tasks."""

import dataclasses
from collections.abc import Sequence
from typing import cast

from rich.console import Console

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.distillation.weighting import best_member, labels_of_member
from rldistill.evaluation.episodes import PolicyRuns
from rldistill.evaluation.evaluate import RunContext, evaluate, evaluate_shard
from rldistill.evaluation.match import FOLDER
from rldistill.evaluation.results import Evaluation, next_step
from rldistill.evaluation.tasks import TasksEvaluation
from rldistill.io.atomic import Mode, discard_stage, write_json
from rldistill.io.execution import Shard
from rldistill.io.storage import pull
from rldistill.losses.objective import given_temperature
from rldistill.policies.ensemble import Committee
from rldistill.recipes.job import Run
from rldistill.recipes.tasks import task_runs
from rldistill.reporting.sections import CONTROL_SUFFIX
from rldistill.run.folder import (
    policy_runs,
    record_run,
    require_result,
    stage_of_run,
    steps_from_reward,
    student_steps,
    training_curves,
)
from rldistill.run.jobs import student_job, with_loaded_features
from rldistill.students.storage import load_native
from rldistill.teachers.training.config import TrainConfig


@stage_of_run
def run_evaluate(
    run: Run, mode: Mode = "new", quiet: bool = False, failed: Sequence[str] = (), shard: Shard | None = None
) -> Evaluation | TasksEvaluation | None:
    """Evaluate teacher, students and random play on the same episodes, into `evaluation.json` and `videos/`.

    Of several tasks, each is evaluated in its folder, and `evaluation.json` has the mean scores of the students.
    `failed` names further students, which learned nothing, for a warning in the report. A `shard` only plays its part
    of the episodes, which a later call reads; it returns None.

    Raises:
        ConfigError: a student is missing, or it was made from other inputs than those of the run.
    """
    path = run.out / "evaluation.json"
    if path.exists() and mode == "new":
        raise ConfigError(f'{path} exists. Evaluate again with mode="resume" (--resume) or "overwrite" (--overwrite).')
    with record_run(run, mode, "students", "videos", shard=shard):
        pull(run.out)  # a shard has no blocks yet
        if mode == "overwrite":
            discard_stage(run.out / FOLDER)
        run = with_loaded_features(run)
        template = student_job(run, with_data=False)
        for name in run.students:
            for seed in run.seeds:
                job = dataclasses.replace(template, name=name, seed=seed)
                job.inputs().require_same(job.folder)
        evaluation = (
            _evaluate_tasks(run, mode, quiet, failed, shard)
            if run.tasks
            else _evaluate_policies(run, template.teacher, quiet, failed, shard)
        )
    if isinstance(evaluation, TasksEvaluation):
        Console().print(evaluation)
    return evaluation


def _members_to_evaluate(
    teacher: Committee, dataset: Dataset | None, run: Run
) -> tuple[Dataset, dict[str, PolicyRuns]]:
    """Return the dataset with the labels of the best of several teachers, which is the reference, and all of them."""
    if dataset is None:
        require_result(run.dataset_folder / "manifest.json", "dataset", "collect")
    assert dataset is not None
    best = best_member(dataset)
    print(f"teacher: {teacher.names[best]}, with the highest mean return of its own episodes in the dataset")
    policies = {"teacher": PolicyRuns("teacher", {None: teacher.members[best]})}
    others = zip(teacher.names, teacher.members, strict=True)
    policies |= {name: PolicyRuns("teacher", {None: member}) for name, member in others if name != teacher.names[best]}
    return labels_of_member(dataset, best), policies


def _evaluate_policies(
    run: Run, teacher: Policy, quiet: bool, failed: Sequence[str], shard: Shard | None
) -> Evaluation | None:
    """Evaluate the policies of a run of one task."""
    trained = run.teacher.total_steps if isinstance(run.teacher, TrainConfig) else 0
    dataset = run.read_dataset() if run.recipe.needs_dataset and run.has_dataset else None
    policies = {"teacher": PolicyRuns("teacher", {None: teacher}, trained)}
    if isinstance(teacher, Committee):
        dataset, policies = _members_to_evaluate(teacher, dataset, run)
    for name in run.students:
        policies[name] = policy_runs(run.policy_folders(name), student_steps(run, name))
    for name in run.students if run.control != "none" else ():
        folders = run.policy_folders(name, "controls")
        policies[name + CONTROL_SUFFIX] = policy_runs(folders, max(map(steps_from_reward, folders.values())))
    if shard is not None:
        settings = run.env, policies, run.evaluate, run.out, shard
        evaluate_shard(*settings, seed=run.seed, progress=not quiet, execution=run.execution)
        return None

    def show(evaluation: Evaluation) -> None:
        Console().print(evaluation)
        if step := next_step(evaluation, run.out):
            print(": ".join(step))

    temperature = given_temperature(run.distill.losses)
    context = RunContext(run.seed, dataset, temperature, training_curves(run), failed, show)
    return evaluate(run.env, policies, run.evaluate, run.out, context, not quiet, run.execution)


def _evaluate_tasks(
    run: Run, mode: Mode, quiet: bool, failed: Sequence[str], shard: Shard | None
) -> TasksEvaluation | None:
    """Evaluate the students of a run in each of its tasks."""
    parts = task_runs(run)
    results = {task: run_evaluate(part, mode, quiet, failed, shard) for task, part in parts.items()}
    if shard is not None:
        return None
    evaluations = cast(dict[str, Evaluation], results)
    students = {name: load_native(run.policy_folders(name)[run.seeds[0]]) for name in run.students}
    parameters = {name: student.num_parameters for name, student in students.items()}
    evaluation = TasksEvaluation.of(evaluations, parameters, run.evaluate.margin)
    write_json(run.out / "evaluation.json", evaluation.to_dict())
    return evaluation
