"""How small can the student be? Families and sizes on shared data; the small ones are tested on fresh episodes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.envs.spaces import adapt_env
from rldistill.evaluation.episodes import VALIDATION
from rldistill.io.atomic import Mode, read_json, write_json
from rldistill.io.progress import Round, track
from rldistill.io.stage_inputs import StageInputs
from rldistill.policies.cost import measure_cost
from rldistill.recipes.dagger import Dagger, distill_in_rounds
from rldistill.recipes.job import Run, StudentJob
from rldistill.search.candidates import as_written, candidates
from rldistill.search.config import SearchConfig
from rldistill.search.halving import SearchEvaluator, Trial, front, halve, judge, sizes_of
from rldistill.students import AnyStudent, Cnn, Mlp
from rldistill.teachers.fingerprint import fingerprint


def search(
    run: Run,
    config: SearchConfig,
    teacher: Policy,
    collect: Callable[[], Dataset],
    mode: Mode = "new",
    quiet: bool = False,
) -> dict[str, Any]:
    """Find the smallest student that keeps the teacher's lead, in `search/` of the run's folder.

    All students learn from one dataset: the teacher's, and some rounds in which a student of middle size acted.
    Successive halving (Jamieson 2016, arXiv 1502.07943) drops those that are far off or larger than others that hold.
    What is left is tested from the smallest on, with several training seeds each, on episodes that nobody was chosen
    by, until decided; all tests together have a risk of 5% of a false yes.

    Args:
        run: the run file.
        config: target and limits of the search.
        teacher: the teacher of the run.
        collect: returns the teacher's dataset, collecting it if needed.
        mode: "new" refuses a folder that exists, "resume" continues it, "overwrite" discards it.
        quiet: print no progress.

    Returns:
        `env margin by teacher winner tried front seconds`, as written to `search/search.json`.

    Raises:
        ConfigError: the teacher is no better than random play, or what is there was asked for otherwise.
    """
    folder, started = run.folder / "search", time.monotonic()
    inputs = _inputs(run, config, teacher)
    if mode != "overwrite":
        inputs.require_same(folder)
    if mode == "resume" and (folder / "search.json").exists():
        return dict(read_json(folder / "search.json"))
    # Before anything is thrown away or noted: what was collected otherwise is refused.
    collected = collect()
    inputs.open_folder(folder, "search.json", mode)
    data = _shared_data(run, config, teacher, collected, folder, quiet)
    arena = SearchEvaluator(adapt_env(run.env, teacher), teacher, run.seed, folder)
    best, worst = (arena.reference(who, config.episodes, VALIDATION).mean() for who in ("teacher", "random"))
    if not best > worst:
        raise ConfigError("search: the teacher is no better than random play, so there is nothing to keep")
    cost = measure_cost(teacher)
    students = run.students if config.own else candidates(_spec_of_students(data), run.students, cost.parameters)
    tried = {name: Trial(name, student) for name, student in students.items()}
    with track("search", "students", quiet) as report:
        finalists = halve(run, config, data, arena, tried, folder, report, sizes_of(teacher)[config.by])
    winner = None
    with track("test the smallest", "episodes", quiet) as report:
        for number, trial in enumerate(finalists):
            trial.test = judge(
                run, config, data, arena, trial, len(finalists), folder, Round(report, number, len(finalists))
            )
            if trial.test["decision"] == "yes":
                winner = trial.name
                break
    found = {
        "env": run.env.id,
        "margin": config.margin,
        "by": config.by,
        "env_steps": data.num_steps,
        "teacher": sizes_of(teacher),
        "winner": winner,
        "tried": [_document(trial) for trial in tried.values()],
        "front": [trial.name for trial in front(tried.values(), config.by)],
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(folder / "search.json", found)
    return found


def _inputs(run: Run, config: SearchConfig, teacher: Policy) -> StageInputs:
    """Return all that a search depends on."""
    values = {
        "search": config,
        "seeds": config.seeds_of(run),
        **{key: getattr(run, key) for key in ("env", "collect", "recipe", "distill", "students", "evaluate", "seed")},
        "teacher": fingerprint(teacher),
    }
    return StageInputs("search", values)


def _shared_data(
    run: Run, config: SearchConfig, teacher: Policy, dataset: Dataset, folder: Path, quiet: bool
) -> Dataset:
    """What all students learn from: the teacher's steps, and those of rounds in which one of middle size acted.

    A run file that names one of its students `scout` says itself which.
    """
    recipe = run.recipe
    if not isinstance(recipe, Dagger):
        recipe = Dagger(config.rounds, max(1, run.collect.steps // (2 * config.rounds)))
    recipe = dataclasses.replace(recipe, eval_episodes=None)  # it is the steps that are wanted
    pictures = len(dataset.spec.obs_shape) == 3
    scout: AnyStudent = Cnn((16, 32, 32), (8, 4, 3), (4, 2, 1), (24,)) if pictures else Mlp((32, 32))
    asked = dataclasses.replace(run, students={"scout": scout, **run.students}, folder=folder)
    with track("scout", "epochs", quiet) as report:
        place = folder / "students" / "scout" / "seed-0"
        job = StudentJob(asked, teacher, dataset, "scout", 0, source=run.dataset_folder)
        distill_in_rounds(job, recipe, "resume", report)
    both = [run.folder / "dataset", place / "dataset"]
    return Dataset.read(both, run.collect.gamma, memory_gb=run.collect.memory_gb)


def _spec_of_students(data: Dataset) -> PolicySpec:
    return dataclasses.replace(data.spec, head=data.spec.head.neutral)


def _document(trial: Trial) -> dict[str, Any]:
    return {
        "name": trial.name,
        "student": as_written(trial.student),
        "size": trial.size,
        "rungs": trial.rungs,
        "test": trial.test,
    }
