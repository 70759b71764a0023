"""Options that several commands share, their parsing, and output."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

import rldistill
from rldistill.cli.completion import complete_file, complete_run, complete_setting, complete_student, complete_teacher
from rldistill.core.errors import ConfigError, printable

File = Annotated[Path, typer.Argument(help="Run file in YAML.", show_default=False, autocompletion=complete_file)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings that override the file: distill.epochs=3",
        show_default=False,
        autocompletion=complete_setting,
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False, autocompletion=complete_run)
]
StudentOfRun = Annotated[
    str | None,
    typer.Option("--student", help="Student of the run.", show_default=False, autocompletion=complete_student),
]
Page = Annotated[Path | None, typer.Option(help="HTML page of the result.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what exists.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Discard what exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Backend = Annotated[
    str | None, typer.Option("--backend", help="Run jobs in: processes or ray (execution.backend).", show_default=False)
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Jobs at once (execution.workers).", show_default=False)
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="K/N", help="Run part K of N, and continue what exists.", show_default=False),
]
TEACHER_HELP = "zoo:NAME, folder of a policy, SB3 zip, ...; with options: q.onnx,head=q_values,scale=0.5"
Teacher = Annotated[str, typer.Argument(help=TEACHER_HELP, show_default=False, autocompletion=complete_teacher)]
NEW_ENV_HELP = "Gymnasium id, or as in a run file: '{id: ..., wrappers: [...]}'"
ENV_HELP = f"{NEW_ENV_HELP}; or a run file that you trust"
Env = Annotated[str, typer.Option("--env", help=ENV_HELP, show_default=False)]
EnvKwargs = Annotated[
    list[str] | None,
    typer.Option("--env-kwarg", metavar="KEY=VALUE", help="Keyword argument of the environment.", show_default=False),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the episodes.")]


def mode_of(resume: bool, overwrite: bool) -> rldistill.Mode:
    """Return the mode of a stage for the options --resume and --overwrite; raise ConfigError if both are given."""
    if resume and overwrite:
        raise ConfigError("--resume continues what exists and --overwrite discards it: choose one")
    return "resume" if resume else "overwrite" if overwrite else "new"


def settings_of(overrides: list[str] | None, backend: str | None, workers: int | None) -> list[str]:
    """Return the overrides of a run file with those of the options --backend and --workers."""
    options = {"backend": backend, "workers": workers}
    return [*(overrides or ()), *(f"execution.{key}={value}" for key, value in options.items() if value is not None)]


def read_options(prefix: str, kind: Any, values: Any) -> Any:
    """Return an instance of a configuration class; raise ConfigError, which begins with `prefix`, for a wrong value."""
    from pydantic import ValidationError

    from rldistill.core.fields import USER_CODE, explain, read

    try:
        return read(kind, values, USER_CODE)
    except ValidationError as error:
        raise ConfigError(f"{prefix}{explain(error.errors()[0])}") from None


def parse_pairs(option: str, pairs: Iterable[str]) -> dict[str, Any]:
    """Return the values of `key=value`, each value in YAML."""
    from rldistill.run.config import parse_value

    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option}: found {pair!r}, expected key=value")
        values[key] = parse_value(text, f"{option} {key}")
    return values


def parse_env(text: str, kwargs: Sequence[str] | None) -> rldistill.EnvConfig:
    """Return the environment of the options --env and --env-kwarg; raise ConfigError if a value is not valid.

    A run file gives the environment of its evaluation. The classes that it names are imported and trusted.
    """
    from rldistill.evaluation.worlds import evaluation_env
    from rldistill.recipes.fields import EnvField
    from rldistill.run.config import load_run, parse_value

    if text.endswith((".yaml", ".yml")):
        run = load_run(Path(text))
        env = evaluation_env(run.env, run.evaluate)
        return dataclasses.replace(env, kwargs=env.kwargs | parse_pairs("--env-kwarg", kwargs or ()))
    values: Any = parse_value(text, "env") if text.startswith("{") else {"id": text}
    own = values.get("kwargs")
    if kwargs and isinstance(own, dict | None):  # any other value is refused below
        values["kwargs"] = (own or {}) | parse_pairs("--env-kwarg", kwargs)
    found: rldistill.EnvConfig = read_options("env.", EnvField, values)
    return found


def parse_teacher(text: str) -> rldistill.SavedTeacher:
    """Return the teacher of an argument `PATH` or `PATH,key=value,...`; raise ConfigError if a value is not valid."""
    path, *pairs = re.split(r",(?=[a-z_]+=)", text)
    teacher: rldistill.SavedTeacher = read_options(
        "teacher.", rldistill.SavedTeacher, {"path": path, **parse_pairs("teacher", pairs)}
    )
    return teacher


def parse_share(text: str) -> float:
    """Return the fraction that `5%` or `0.05` is."""
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        raise ConfigError(f"--margin: found {text!r}, expected a fraction such as 5%") from None
    return number / 100 if text.strip().endswith("%") else number


def require_new(path: Path | None, option: str, overwrite: bool = False) -> None:
    """Raise ConfigError, before any work, if a file cannot be written, or exists and must not be overwritten."""
    if path is None:
        return
    if path.is_dir() or not path.name:
        raise ConfigError(f"{option}: {path} is a folder. Name a file in it.")
    if path.exists() and not overwrite:
        raise ConfigError(f"{option}: {path} exists. Name another file, or remove it.")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir():
        raise ConfigError(f"{option}: {folder} is a file, expected a folder. Name a file elsewhere.")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{option}: {folder} is not writable. Name a file elsewhere.")


def output(quiet: bool, as_json: bool = False) -> AbstractContextManager[Any]:
    """Redirect the tables of the stages: to nowhere if quiet, and to stderr where stdout is for JSON."""
    if quiet:
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2))


def print_result(result: Any, as_json: bool) -> None:
    """Print a result with `to_dict` as text, or as JSON."""
    if as_json:
        print_json(result.to_dict())
    else:
        typer.echo(str(result))


def show(value: dict[str, Any], as_json: bool = False) -> None:
    """Print a mapping as aligned lines, or as JSON."""
    if as_json:
        print_json(value)
        return
    width = max(map(len, value))
    for key, item in value.items():
        lines = [f"{name} {entry}" for name, entry in item.items()] if isinstance(item, dict) else [str(item)]
        lines = [*map(printable, lines)]
        typer.echo(f"{key:<{width}}  " + f"\n{'':<{width}}  ".join(lines))
