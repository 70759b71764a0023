"""The stages of a run, one function each, and all of them in order."""

import dataclasses
from pathlib import Path
from typing import Literal, cast

from rich.console import Console

from rldistill.collection.collect import collect, collect_shard
from rldistill.core.errors import ConfigError, NothingLearnedError, did_you_mean, printable
from rldistill.core.policy import Policy, resolve_device
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.evaluation.episodes import play
from rldistill.evaluation.evaluate import load_baseline
from rldistill.evaluation.metrics import probe_metrics
from rldistill.evaluation.tables import rich_table
from rldistill.evaluation.worlds import evaluation_env
from rldistill.exporters.config import DEFAULT_FORMATS
from rldistill.exporters.formats import require_packages
from rldistill.io.atomic import Mode, require_mode
from rldistill.io.execution import Shard
from rldistill.io.progress import Progress, track
from rldistill.io.storage import pull
from rldistill.recipes.job import Run
from rldistill.recipes.tasks import require_one_task, require_tasks, task_runs
from rldistill.reporting import write_report, write_tasks_report
from rldistill.reporting.search_page import SearchResult, as_students, search_rows, search_verdict, write_search
from rldistill.run.evaluation import run_evaluate
from rldistill.run.export import require_exported, run_export
from rldistill.run.folder import record_resumed, record_run, stage_of_run, student_steps, work_in
from rldistill.run.jobs import (
    Fits,
    load_teacher,
    load_teachers,
    student_job,
    warn_of_env,
    warn_of_mistakes,
    with_loaded_features,
)
from rldistill.search.config import SearchConfig
from rldistill.search.search import search
from rldistill.students.storage import read_document
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import train_teacher


@stage_of_run
def run_all(run: Run, mode: Mode = "new", quiet: bool = False) -> Path:
    """Run all stages of a run and return the path of the report, which has all students that learned something.

    Args:
        run: Run with `verify=False` to skip the check of a teacher that was trained elsewhere.
        mode: "new" refuses stages that exist, "resume" continues them, "overwrite" discards them.
        quiet: True to show no progress.

    Raises:
        NothingLearnedError: a student learned nothing; if others did, after the report.
    """
    require_mode(mode)
    for stage, config in (("collect", run.collect), ("distill", run.distill), ("evaluate", run.evaluate)):
        resolve_device(config.device, f"{stage}.device")  # a missing device is an error now, not after hours
    if run.export is not None:
        require_packages(run.export.formats or DEFAULT_FORMATS)
    parts = [*task_runs(run).values()] or [run]
    require_exported(run)
    for part in parts:
        if run.evaluate.baseline is not None:
            load_baseline(run.evaluate.baseline, part.env)
        probe_metrics(evaluation_env(part.env, run.evaluate), run.evaluate.metrics)
    with work_in(run.out):
        with record_resumed([run, *task_runs(run).values()] if mode == "resume" else ()):
            if any(isinstance(part.teacher, TrainConfig) for part in parts):
                run_train(run, mode, quiet)
            if run.recipe.needs_dataset:
                run_collect(run, mode, quiet)
            failed = _distill_students(run, mode, quiet)
        others = dataclasses.replace(
            run, students={name: run.students[name] for name in run.students if name not in failed}
        )
        run_evaluate(others, mode, quiet, [*failed])
        if run.export is not None:
            run_export(others, mode, quiet)
        path = run_report(run)
        if failed:
            reason = next(iter(failed.values()))
            raise NothingLearnedError(f"{reason} The report has the other students, without {', '.join(failed)}.")
    return path


@stage_of_run
def run_train(run: Run, mode: Mode = "new", quiet: bool = False) -> Policy | dict[str, Policy]:
    """Train the teacher into `teacher/`; of several tasks, each teacher that is to be trained."""
    to_train = {task: part for task, part in task_runs(run).items() if isinstance(part.teacher, TrainConfig)}
    if to_train:
        return {task: cast(Policy, run_train(part, mode, quiet)) for task, part in to_train.items()}
    if not isinstance(run.teacher, TrainConfig):
        raise ConfigError(
            f"teacher: {run.document.get('teacher', run.teacher or [*run.teachers])} is trained already. To train one, "
            "give a TrainConfig (teacher.train in a run file)."
        )
    warn_of_env(run.env)
    with record_run(run, mode, "teacher"), track("train teacher", "steps", quiet) as progress:
        folder = run.out / "teacher"
        teacher = train_teacher(run.env, run.teacher, folder, run.seed, mode=mode, progress=progress)
    mean = read_document(folder).provenance.mean_return
    random_play = play(run.env, None, run.teacher.eval_episodes, run.play_config()).returns
    print(f"teacher: {folder} (mean return {mean:.4g}, random play {random_play.mean():.4g})")
    return teacher


@stage_of_run
def run_collect(run: Run, mode: Mode = "new", quiet: bool = False) -> Dataset | dict[str, Dataset]:
    """Collect the dataset of the teacher into `dataset/`; of several tasks, those of all teachers."""
    if run.tasks:
        parts = task_runs(run)
        require_tasks(run, load_teachers(parts))
        return {task: cast(Dataset, run_collect(part, mode, quiet)) for task, part in parts.items()}
    teacher = _checked_teacher(run, mode)
    with record_run(run, mode, "dataset"), track("collect", "steps", quiet) as progress:
        return collect(
            run.env, teacher, run.collect, run.dataset_folder, seed=run.seed, mode=mode, progress=progress,
            execution=run.execution,
        )  # fmt: skip


@stage_of_run
def run_shard(run: Run, stage: Literal["collect", "distill", "evaluate"], shard: Shard, quiet: bool = False) -> None:
    """Run one of several parts of a stage, in a folder that other processes use at the same time; continue what exists.

    The last step is `rldistill dataset seal` after a collection, and `rldistill run FILE --resume` after the others.
    """
    if stage == "distill":
        run_distill(run, "resume", quiet, shard)
    if stage == "evaluate":
        run_evaluate(run, "resume", quiet, shard=shard)
    if stage != "collect":
        return
    require_one_task(run, "collect --shard")
    teacher = _checked_teacher(run, "resume")
    with record_run(run, "resume", shard=shard), track("collect", "steps", quiet) as progress:
        collect_shard(
            run.env, teacher, run.collect, run.dataset_folder, shard, seed=run.seed, progress=progress,
            execution=run.execution,
        )  # fmt: skip


def _checked_teacher(run: Run, mode: Mode) -> Policy:
    """Return the teacher; raise or warn about mistakes before the first collection."""
    warn_of_env(run.env)
    teacher = load_teacher(run)
    if mode == "overwrite" or not run.has_dataset:
        run.recipe.check(with_loaded_features(run), teacher)
        if run.verify:
            warn_of_mistakes(run, teacher)
    return teacher


@stage_of_run
def extend_dataset(run: Run, steps: int, progress: Progress | bool = True) -> Dataset:
    """Collect another round, with new seeds, into the dataset of a run."""
    require_one_task(run, "dataset extend")
    with work_in(run.out):
        manifest = Manifest.read(run.dataset_folder)
        manifest.require_complete(0)
        number = 1 + max(block.round for block in manifest.blocks)
        config = dataclasses.replace(run.collect, steps=steps)
        return collect(
            run.env, load_teacher(run), config, run.dataset_folder, seed=run.seed, round=number, mode="resume",
            progress=progress, execution=run.execution,
        )  # fmt: skip


@stage_of_run
def run_distill(run: Run, mode: Mode = "new", quiet: bool = False, shard: Shard | None = None) -> None:
    """Distill every student with every training seed into `students/NAME/seed-N/`, and train the controls.

    A student that learns nothing does not stop the others.

    Raises:
        NothingLearnedError: a student learned nothing.
    """
    if failed := _distill_students(run, mode, quiet, shard):
        raise NothingLearnedError(
            f"{next(iter(failed.values()))} The other students are distilled. To evaluate them, leave out "
            f'{", ".join(failed)} and continue with mode="resume" (--resume).'
        )


def _distill_students(run: Run, mode: Mode, quiet: bool, shard: Shard | None = None) -> dict[str, NothingLearnedError]:
    """Distill all students and return the errors of those that learned nothing; raise if all did.

    A `shard` has a part of the fits, and no controls, whose steps depend on all students.
    """
    with record_run(run, mode, "students", "controls", shard=shard):
        pull(run.out)  # a shard has no blocks yet
        run = with_loaded_features(run)
        template = student_job(run)
        if mode == "overwrite":  # an error in the settings must not cost the students that exist
            template.check()
        failed: dict[str, NothingLearnedError] = {}
        fits = Fits(template, mode, quiet)
        pairs = fits.pairs if shard is None else shard.select(fits.pairs)
        for name, error in fits.run_all(pairs, failed):
            if error is not None:
                failed.setdefault(name, error)
        if run.control != "none" and shard is None:
            steps = {name: student_steps(run, name) for name in run.students if name not in failed}
            controls = dataclasses.replace(fits, control_steps=steps)
            for _ in controls.run_all([pair for pair in fits.pairs if pair[0] in steps]):
                pass
        if failed and len(failed) == len(run.students):
            raise next(iter(failed.values()))
        return failed


@stage_of_run
def run_report(run: Run) -> Path:
    """Write `report.html` and `MODEL_CARD.md` from the results of the other stages; of several tasks, also in each."""
    if run.tasks:
        for part in task_runs(run).values():
            run_report(part)
        path = write_tasks_report(run.out)
    else:
        path = write_report(run.out)
    print(f"report: {path}")
    return path


@stage_of_run
def run_search(run: Run, config: SearchConfig, mode: Mode = "new", quiet: bool = False) -> SearchResult:
    """Search for the smallest student, print the result, and write `search/search.html`.

    Raises:
        ConfigError: `own` is set and the run has no students, or none has the name of `behavior_policy`.
    """
    require_one_task(run, "search")
    if config.own and not run.students:
        raise ConfigError("own: the run has no students to try. Add some, or search without own=True (--own).")
    if config.behavior_policy is not None and config.behavior_policy not in run.students:
        hint = did_you_mean(config.behavior_policy, run.students) or " Add it, or name one that is there."
        raise ConfigError(f"behavior_policy: the run has no student {config.behavior_policy!r}.{hint}")
    if isinstance(run.teacher, TrainConfig):
        run_train(run, mode="resume", quiet=quiet)
    run = with_loaded_features(run)
    # Students of the run that do not fit its losses are no reason to refuse the collection.
    collected = dataclasses.replace(run, students={})
    with work_in(run.out):
        dataset = lambda: cast(Dataset, run_collect(collected, mode="resume", quiet=quiet))  # noqa: E731
        result = search(run, config, load_teacher(run), dataset, mode, quiet)
    page = run.out / "search" / "search.html"
    write_search(result, page)
    console = Console(highlight=False, markup=False)
    console.print(rich_table(search_rows(result)), printable(search_verdict(result)), sep="\n")
    if result.winner:
        console.print(as_students(result))
    print(f"search page: {page}")
    return result
