"""Search for the smallest student as a stage of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console

from rldistill.core.errors import ConfigError
from rldistill.evaluation.tables import rich_table
from rldistill.io.atomic import Mode
from rldistill.recipes.job import Run
from rldistill.reporting.search_page import as_students, search_rows, search_verdict, write_search
from rldistill.run.stages import load_teacher, run_collect, run_train, with_loaded_features
from rldistill.search.config import SearchConfig
from rldistill.search.search import search
from rldistill.teachers.training.config import TrainConfig


def run_search(run: Run, config: SearchConfig, mode: Mode = "new", quiet: bool = False) -> dict[str, Any]:
    """Search for the smallest student, print the result, and write `search/search.html`.

    Raises:
        ConfigError: `own` is set and the run has no students.
    """
    if config.own and not run.students:
        raise ConfigError("own: the run has no students to try. Add some, or leave out --own.")
    if isinstance(run.teacher, TrainConfig):
        run_train(run, mode="resume", quiet=quiet)
    run = with_loaded_features(run)
    # Students of the run that do not fit its losses are no reason to refuse the collection.
    collected = dataclasses.replace(run, students={})
    result = search(
        run, config, load_teacher(run), lambda: run_collect(collected, mode="resume", quiet=quiet), mode, quiet
    )
    page = run.out / "search" / "search.html"
    write_search(result, page)
    console = Console(highlight=False)
    console.print(rich_table(search_rows(result)), search_verdict(result), sep="\n")
    if result["winner"]:
        console.print(as_students(result), markup=False)
    print(f"search page: {page}")
    return result
