"""Search for the smallest student as a stage of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console

from rldistill.core.errors import ConfigError
from rldistill.io.atomic import Mode
from rldistill.recipes.job import Run
from rldistill.reporting.search import as_students, search_table, search_verdict, write_search
from rldistill.run.stages import load_teacher, run_collect, run_train, with_loaded_features
from rldistill.search.config import SearchConfig
from rldistill.search.search import search
from rldistill.teachers.training.config import TrainConfig


def run_search(run: Run, config: SearchConfig, mode: Mode = "new", quiet: bool = False) -> dict[str, Any]:
    """Search, print the result as a table, and write `search/search.html`.

    Raises:
        ConfigError: only the student families of the run file may be tried, and it names none.
    """
    if config.own and not run.students:
        raise ConfigError("--own: the run file names no students")
    if isinstance(run.teacher, TrainConfig):
        run_train(run, mode="resume", quiet=quiet)
    run = with_loaded_features(run)
    only_data = dataclasses.replace(run, students={})
    found = search(
        run,
        config,
        load_teacher(run),
        lambda: run_collect(only_data, mode="resume", quiet=quiet),
        mode,
        quiet,
    )
    page = run.folder / "search" / "search.html"
    write_search(found, page)
    console = Console(highlight=False)
    console.print(search_table(found), search_verdict(found), sep="\n")
    if found["winner"]:
        console.print(as_students(found), markup=False)
    print(f"the search: {page}")
    return found
