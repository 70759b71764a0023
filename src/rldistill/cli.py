"""The command line: verbs only. What they do is in `rldistill.recipes.pipeline`, and works the same from Python."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rldistill.errors import ConfigError, RLDistillError

if TYPE_CHECKING:
    from rldistill.recipes.run import Run

FAILED, INTERRUPTED = 2, 130


class Verbs(TyperGroup):
    """Verbs whose foreseeable failures end in one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RLDistillError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            typer.echo("stopped; go on with --resume", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if not _disk_full(error):
                raise
            where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
            _fail(f"the disk is full{where}: make room, then go on with --resume")


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(FAILED) from None


def _disk_full(error: Exception) -> bool:
    # safetensors and torch report it in words, not as an OSError.
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn a reinforcement-learning teacher into a smaller, faster student, and prove what was lost.",
)
datasets = typer.Typer(cls=Verbs, no_args_is_help=True, rich_markup_mode=None, help="Look into a dataset.")
app.add_typer(datasets, name="dataset")
teachers = typer.Typer(cls=Verbs, no_args_is_help=True, rich_markup_mode=None, help="Find, verify, compare teachers.")
app.add_typer(teachers, name="teachers")

File = Annotated[Path, typer.Argument(help="The run file, in YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Count over the file: distill.epochs=3", show_default=False),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw away what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Teacher = Annotated[str, typer.Argument(help="zoo:NAME, a policy's folder, an SB3 zip.", show_default=False)]
Env = Annotated[str, typer.Option("--env", help="A Gymnasium id.", show_default=False)]
EnvArgument = Annotated[
    list[str] | None, typer.Option("--env-kwarg", metavar="KEY=VALUE", help="Of the environment.", show_default=False)
]
Seed = Annotated[int, typer.Option("--seed", min=0)]
Dataset = Annotated[Path, typer.Argument(help="A dataset's folder, or that of its run.", show_default=False)]


@app.command()
def run(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """All stages: from a teacher to a report."""
    _stage("run_all", file, overrides, resume, overwrite, quiet, as_json)


@app.command()
def train(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train the teacher."""
    _stage("run_train", file, overrides, resume, overwrite, quiet)


@app.command()
def collect(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Let the teacher play, and label what was seen."""
    _stage("run_collect", file, overrides, resume, overwrite, quiet)


@app.command()
def distill(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit the students to the dataset."""
    _stage("run_distill", file, overrides, resume, overwrite, quiet)


@app.command()
def evaluate(
    file: File,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Let teacher, students and a random policy play the same episodes."""
    _stage("run_evaluate", file, overrides, resume, overwrite, quiet, as_json)


@app.command()
def report(file: File, overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Write report.html from what the other stages left."""
    from rldistill.config import RunConfig
    from rldistill.recipes import pipeline

    with _output(quiet):
        pipeline.run_report(RunConfig.load(file, overrides or ()).plan())


@datasets.command()
def info(path: Dataset, as_json: AsJson = False) -> None:
    """Say what a dataset holds."""
    from rldistill.data.info import describe

    _show(describe(path), as_json)


@datasets.command()
def check(path: Dataset, as_json: AsJson = False) -> None:
    """Compare every block with its hash and read it."""
    from rldistill.data.info import verify

    _show(verify(path), as_json)


@teachers.command("list")
def list_(as_json: AsJson = False) -> None:
    """The teachers that ship."""
    from rldistill.recipes.teachers import list_teachers

    rows = list_teachers()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            _show(row, as_json=False)


@teachers.command()
def verify(
    path: Teacher,
    env: Env,
    env_kwarg: EnvArgument = None,
    claimed: Annotated[str | None, typer.Option(help="Its published return: 242.1±31.8 or 242.1.")] = None,
    claimed_episodes: Annotated[int, typer.Option(min=0, help="Episodes that the claim is the mean of.")] = 0,
    episodes: Annotated[int, typer.Option(min=1)] = 100,
    seed: Seed = 0,
    activation: Annotated[str | None, typer.Option(help="Of its layers, where its file does not tell.")] = None,
    head: Annotated[str | None, typer.Option(help="What the numbers of ONNX and Keras mean: q_values.")] = None,
    scale: Annotated[float, typer.Option(help="What the input of ONNX and Keras is multiplied with.")] = 1.0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score a teacher, compare it with what is claimed of it, look for the usual mistakes."""
    from rldistill.config import env_from_options, teacher_from_options
    from rldistill.evaluate.verify import Claim
    from rldistill.recipes.teachers import print_verification, verify_teacher

    claim = Claim.parse(claimed, claimed_episodes) if claimed is not None else None
    teacher = teacher_from_options(path, activation, head, scale)
    found = verify_teacher(teacher, env_from_options(env, env_kwarg or ()), claim, episodes, seed, quiet)
    with _output(quiet):
        typer.echo(json.dumps(found, indent=2)) if as_json else print_verification(found)
    if not found["ok"]:
        raise typer.Exit(1)


@teachers.command()
def compare(
    paths: Annotated[list[str], typer.Argument(help="Teachers: zoo:NAME, folders, SB3 zips.", show_default=False)],
    env: Env,
    env_kwarg: EnvArgument = None,
    episodes: Annotated[int, typer.Option(min=1)] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Labelled steps for each probe student.")] = 5_000,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Write the result there, as JSON.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say which teacher to take: returns, cost, agreement, and what a small student learns from each."""
    from rldistill.config import env_from_options
    from rldistill.evaluate.compare import CompareConfig
    from rldistill.recipes import teachers as recipe

    config = CompareConfig(episodes=episodes, steps=steps)
    found = recipe.compare(paths, env_from_options(env, env_kwarg or ()), config, seed, out, quiet)
    with _output(quiet):
        typer.echo(json.dumps(found, indent=2)) if as_json else recipe.print_comparison(found)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine offers: versions, cores, GPU, ROMs, extras."""
    from rldistill.doctor import examine

    _show(examine(), as_json)


def _stage(
    name: str,
    file: Path,
    overrides: list[str] | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    as_json: bool = False,
) -> None:
    if resume and overwrite:
        raise ConfigError("--resume goes on with what is there and --overwrite throws it away: choose one")
    from rldistill.artifacts import read_json
    from rldistill.config import RunConfig
    from rldistill.recipes import pipeline

    plan: Run = RunConfig.load(file, overrides or ()).plan()
    with _output(quiet, as_json):
        getattr(pipeline, name)(plan, resume, overwrite, quiet)
    if as_json:
        typer.echo(json.dumps(read_json(plan.folder / "evaluation.json"), indent=2))


def _output(quiet: bool, as_json: bool = False) -> AbstractContextManager[Any]:
    """Where the stages' tables go: nowhere if quiet, and to stderr where stdout is for JSON."""
    if quiet:
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _show(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=2))
        return
    width = max(map(len, value))
    for key, item in value.items():
        lines = [f"{name} {found}" for name, found in item.items()] if isinstance(item, dict) else [str(item)]
        typer.echo(f"{key:<{width}}  " + f"\n{'':<{width}}  ".join(lines))


def main() -> None:
    """The entry point `rldistill`."""
    # A cluster's stop is the same as a person's, also where a shell began the process without Ctrl-C.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    app(prog_name="rldistill")


if __name__ == "__main__":
    main()
