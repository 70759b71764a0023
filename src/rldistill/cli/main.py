"""The command line: verbs only. What they do is in `rldistill.run.stages`, and works the same from Python."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import traceback
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from rldistill.cli.dataset import datasets
from rldistill.cli.shared import (
    AsJson,
    File,
    NoVerify,
    Overrides,
    Overwrite,
    Quiet,
    Resume,
    Verbs,
    mode_of,
    output,
    require_new,
    show,
)
from rldistill.cli.teachers import teachers

if TYPE_CHECKING:
    from rldistill.io.atomic import Mode
    from rldistill.recipes.job import Run

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn a reinforcement-learning teacher into a smaller, faster student, and prove what was lost.",
)
app.add_typer(datasets, name="dataset")
app.add_typer(teachers, name="teachers")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(metadata.version("rldistill"))
        raise typer.Exit


@app.callback()
def rldistill(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
) -> None:
    """Turn a reinforcement-learning teacher into a smaller, faster student, and prove what was lost."""


@app.command()
def run(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """All stages: from a teacher to a report."""
    _stage("run_all", file, overrides, mode_of(resume, overwrite), quiet, as_json, no_verify=no_verify)


@app.command()
def train(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train the teacher."""
    _stage("run_train", file, overrides, mode_of(resume, overwrite), quiet)


@app.command()
def collect(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
    quiet: Quiet = False,
) -> None:
    """Let the teacher play, and label what was seen."""
    _stage("run_collect", file, overrides, mode_of(resume, overwrite), quiet, no_verify=no_verify)


@app.command()
def distill(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit the students to the dataset."""
    _stage("run_distill", file, overrides, mode_of(resume, overwrite), quiet)


@app.command()
def evaluate(
    file: File,
    overrides: Overrides = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Play on until it is known which students keep the teacher's lead.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Let teacher, students and a random policy play the same episodes."""
    asked = [*(overrides or ()), *["evaluate.sequential=true"] * sequential]
    _stage("run_evaluate", file, asked, mode_of(resume, overwrite), quiet, as_json)


@app.command()
def report(file: File, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Write report.html and MODEL_CARD.md from what the other stages left."""
    from rldistill.run import stages as pipeline
    from rldistill.run.config import load_run

    with output(quiet):
        pipeline.run_report(load_run(file, overrides or ()))


@app.command()
def search(
    file: File,
    overrides: Overrides = None,
    margin: Annotated[str, typer.Option(help="The share of the teacher's lead that may be lost.")] = "5%",
    by: Annotated[str, typer.Option(help="What is to be small: parameters, bytes, macs, latency.")] = "parameters",
    own: Annotated[bool, typer.Option("--own", help="Try the students of the run file alone.")] = False,
    behavior_policy: Annotated[
        str | None, typer.Option(help="Student of the run file that acts in the rounds of DAgger.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what was found there.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Find the smallest student that keeps what its teacher does."""
    from rldistill.cli.options import measure_from_options, share_from_options
    from rldistill.io.atomic import write_json
    from rldistill.run.config import load_run
    from rldistill.run.search import run_search
    from rldistill.search.config import SearchConfig

    mode = mode_of(resume, overwrite)
    require_new(json_file, "--json", again=mode != "new")
    config = SearchConfig(
        share_from_options(margin), measure_from_options(by), own=own, behavior_policy=behavior_policy
    )
    with output(quiet):
        found = run_search(load_run(file, overrides or ()), config, mode, quiet)
    if json_file is not None:
        write_json(json_file, found)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Folders of runs.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Runs side by side: what each student reached, and what was asked differently."""
    from rldistill.reporting.compare_runs import compare_runs

    found = compare_runs(runs)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))


@app.command()
def explain(
    path: Annotated[Path, typer.Argument(help="A student's folder.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Draw weights on pictures there, as PNG.")] = None,
) -> None:
    """Print a tree as rules, or the weights of a linear student."""
    from rldistill.reporting import interpret as explaining
    from rldistill.students.storage import load_native

    require_new(out, "--out")
    policy = load_native(path)
    typer.echo(explaining.explain(policy))
    if out is not None:
        explaining.draw(policy, out)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine offers: versions, cores, GPU, ROMs, extras."""
    from rldistill.cli.doctor import examine

    show(examine(), as_json)


CRASHED = 70


def _stage(
    name: str,
    file: Path,
    overrides: list[str] | None,
    mode: Mode,
    quiet: bool,
    as_json: bool = False,
    no_verify: bool = False,
) -> None:
    from rldistill.io.atomic import read_json
    from rldistill.run import stages as pipeline
    from rldistill.run.config import load_run

    plan: Run = dataclasses.replace(load_run(file, overrides or ()), verify=not no_verify)
    with output(quiet, as_json):
        getattr(pipeline, name)(plan, mode, quiet)
    if as_json:
        typer.echo(json.dumps(read_json(plan.folder / "evaluation.json"), indent=2))


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    typer.echo(f"warning: {message}", err=True)


def main() -> None:
    """The entry point `rldistill`."""
    # A cluster's stop is the same as a person's, also where a shell began the process without Ctrl-C.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    warnings.showwarning = _warn
    try:
        app(prog_name="rldistill")
    except Exception:  # 1 is the answer that a claim does not hold
        traceback.print_exc()
        sys.exit(CRASHED)


if __name__ == "__main__":
    main()
