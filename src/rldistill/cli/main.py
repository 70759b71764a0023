"""The command `rldistill`. Each command calls one function of `rldistill.run` or of a stage."""

from __future__ import annotations

import io
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

import typer

import rldistill
from rldistill.cli.completion import complete_run, complete_student, whole_words
from rldistill.cli.dataset import datasets
from rldistill.cli.doctor import doctor
from rldistill.cli.errors import EXIT_CRASH, EXIT_FALSE, TRACEBACK, command_group, interrupt
from rldistill.cli.export import exports, hub
from rldistill.cli.options import (
    AsJson,
    Backend,
    File,
    Overrides,
    Overwrite,
    Page,
    Quiet,
    Resume,
    RunFolder,
    ShardOption,
    Workers,
    mode_of,
    output,
    parse_share,
    print_json,
    print_result,
    read_options,
    require_new,
    settings_of,
)
from rldistill.cli.start import demo, examples, init
from rldistill.cli.teachers import teachers
from rldistill.cli.watch import watch
from rldistill.core.errors import ConfigError, printable

app = command_group(pretty_exceptions_enable=False)
for command in (demo, init, examples):
    app.command()(command)
app.add_typer(datasets, name="dataset")
app.add_typer(teachers, name="teachers")
app.add_typer(exports, name="export")
app.add_typer(hub, name="hub")
app.add_typer(doctor, name="doctor")


Stage: TypeAlias = "Callable[[rldistill.Run, rldistill.Mode, bool], Any]"
"""Function of a stage, called with a run, the mode and True for no output."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(rldistill.__version__)
        raise typer.Exit


@app.callback()
def set_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    show_traceback: Annotated[
        bool, typer.Option(TRACEBACK, help="Print the traceback of an error, too; anywhere on the line.")
    ] = False,
) -> None:
    """Turn a reinforcement-learning teacher into a smaller, faster student, and prove what was lost."""


def _run_stage(
    stage: Stage, file: Path, overrides: list[str] | None, mode: rldistill.Mode, quiet: bool, as_json: bool = False
) -> rldistill.Run:
    from rldistill.io.atomic import read_json

    run = rldistill.load_run(file, overrides or ())
    with output(quiet, as_json):
        stage(run, mode, quiet)
    if as_json:
        print_json(read_json(run.out / "evaluation.json"))
    return run


def _part_of(stage: Literal["collect", "distill", "evaluate"], shard: str | None, mode: rldistill.Mode) -> Stage:
    """Return the function of a stage, or of one of its shards."""
    from rldistill.io.execution import Shard
    from rldistill.run.stages import run_shard

    if shard is None:
        return cast(Stage, getattr(rldistill, f"run_{stage}"))
    if mode == "overwrite":
        raise ConfigError("--overwrite: a shard cannot discard what the others write. Remove the folder first.")
    part = Shard.parse(shard)
    return lambda run, mode, quiet: run_shard(run, stage, part, quiet)


@app.command()
def run(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    backend: Backend = None,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run all stages, from the teacher to the report."""
    from rldistill.run.export import failed_exports

    settings, mode = settings_of(overrides, backend, workers), mode_of(resume, overwrite)
    run = _run_stage(rldistill.run_all, file, settings, mode, quiet, as_json)
    if run.export is not None and failed_exports(run):
        raise typer.Exit(EXIT_FALSE)


@app.command()
def train(
    file: File, overrides: Overrides = None, resume: Resume = False, overwrite: Overwrite = False, quiet: Quiet = False
) -> None:
    """Train the teacher."""
    _run_stage(rldistill.run_train, file, overrides, mode_of(resume, overwrite), quiet)


@app.command()
def collect(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    backend: Backend = None,
    workers: Workers = None,
    shard: ShardOption = None,
    quiet: Quiet = False,
) -> None:
    """Collect a dataset that the teacher labels."""
    settings, mode = settings_of(overrides, backend, workers), mode_of(resume, overwrite)
    _run_stage(_part_of("collect", shard, mode), file, settings, mode, quiet)


@app.command()
def distill(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    backend: Backend = None,
    workers: Workers = None,
    shard: ShardOption = None,
    quiet: Quiet = False,
) -> None:
    """Train the students."""
    settings, mode = settings_of(overrides, backend, workers), mode_of(resume, overwrite)
    _run_stage(_part_of("distill", shard, mode), file, settings, mode, quiet)


@app.command()
def evaluate(
    file: File,
    overrides: Overrides = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Add episodes until it is decided which students keep the lead.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    backend: Backend = None,
    workers: Workers = None,
    shard: ShardOption = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate teacher, students and a random policy on the same episodes, and update a report that exists."""
    if shard is not None and as_json:
        raise ConfigError("--json: a shard has no result. Print that of the last command, without --shard.")
    settings = [*settings_of(overrides, backend, workers), *["evaluate.sequential=true"] * sequential]
    mode = mode_of(resume, overwrite)
    part = _part_of("evaluate", shard, mode)

    def stage(run: rldistill.Run, mode: rldistill.Mode, quiet: bool) -> None:
        part(run, mode, quiet)
        if shard is None and (run.out / "report.html").exists():
            rldistill.run_report(run)

    _run_stage(stage, file, settings, mode, quiet, as_json)


@app.command()
def report(file: File, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Write report.html and MODEL_CARD.md from the results of the other stages."""
    with output(quiet):
        rldistill.run_report(rldistill.load_run(file, overrides or ()))


@app.command()
def search(
    file: File,
    overrides: Overrides = None,
    margin: Annotated[str, typer.Option(help="Fraction of the teacher's lead that the student may lose.")] = "5%",
    by: Annotated[str, typer.Option(help="Size to minimize: parameters, bytes, macs or latency.")] = "parameters",
    own: Annotated[bool, typer.Option("--own", help="Try the students of the run file only.")] = False,
    behavior_policy: Annotated[
        str | None, typer.Option(help="Student of the run file that acts in the rounds of DAgger.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="JSON file of the result.")] = None,
    resume: Resume = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard an earlier search, but neither dataset nor teacher.")
    ] = False,
    backend: Backend = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Find the smallest student that keeps the return of its teacher."""
    from rldistill.io.atomic import write_json

    mode = mode_of(resume, overwrite)
    require_new(json_file, "--json", overwrite=mode != "new")
    options = {"margin": parse_share(margin), "by": by, "own": own, "behavior_policy": behavior_policy}
    config = read_options("--", rldistill.SearchConfig, options)
    with output(quiet):
        result = rldistill.run_search(
            rldistill.load_run(file, settings_of(overrides, backend, workers)), config, mode, quiet
        )
    if json_file is not None:
        write_json(json_file, result.to_dict())


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN ...", help="Folders of runs.", show_default=False, autocompletion=complete_run),
    ],
    page: Page = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs: the results of each student, and the settings that differ."""
    from rldistill.reporting.page import write_run_comparison

    require_new(page, "--page")
    result = rldistill.compare_runs(runs)
    if page is not None:
        write_run_comparison(result, page)
    print_result(result, as_json)


@app.command()
def explain(
    path: Annotated[Path, typer.Argument(help="Folder of a student.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="PNG file for a drawing of weights on images.")] = None,
) -> None:
    """Print a tree as rules, or the weights of a linear student."""
    from rldistill.reporting import interpret
    from rldistill.students.storage import load_native

    require_new(out, "--out")
    policy = load_native(path)
    typer.echo(printable(interpret.explain(policy)))
    if out is not None:
        interpret.draw(policy, out)


@app.command()
def why(
    run: RunFolder,
    student: Annotated[
        str | None,
        typer.Option(
            help="Student of the run; by default its best one.", show_default=False, autocompletion=complete_student
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain why a student falls short of its teacher, and name the next command."""
    from rldistill.reporting.why import explain_shortfall

    print_result(explain_shortfall(run, student), as_json)


app.command()(watch)


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown instead.")] = False,
) -> None:
    """Print all settings of run files as JSON Schema: types, ranges, defaults and descriptions."""
    from rldistill.run.schema import run_schema, run_tables

    if markdown:
        typer.echo(run_tables(), nl=False)
    else:
        print_json(run_schema())


GYMNASIUM_STYLE = re.compile(r"\x1b\[\d+m(WARN: )?")
_shown_warnings: set[str] = set()


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    from rldistill.io.progress_file import active_file

    # Gymnasium colors its warnings, and gives those of an environment once for each copy.
    text = f"warning: {printable(GYMNASIUM_STYLE.sub('', str(message)))}"
    if text in _shown_warnings:
        return
    _shown_warnings.add(text)
    typer.echo(text, err=True)
    if (file := active_file()) is not None:
        file.add_line(text)


def main() -> None:
    """Run the command line; the entry point `rldistill`."""
    # A scheduler's SIGTERM stops a run like Ctrl-C, also where a shell started the process with SIGINT ignored.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, interrupt)
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # of characters that a terminal in LANG=C cannot show
    try:
        with whole_words():
            app(prog_name="rldistill")
    except Exception:  # not 1, which is the answer that a claim does not hold
        traceback.print_exc()
        sys.exit(EXIT_CRASH)


if __name__ == "__main__":
    main()
