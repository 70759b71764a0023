"""Options that several commands share, their parsing, and output."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from rldistill.core.errors import ConfigError

if TYPE_CHECKING:
    from rldistill.core.env import EnvConfig
    from rldistill.io.atomic import Mode
    from rldistill.teachers.load import SavedTeacher

File = Annotated[Path, typer.Argument(help="Run file in YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that override the file: distill.epochs=3", show_default=False),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what exists.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Discard what exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TEACHER_HELP = "zoo:NAME, folder of a policy, SB3 zip, ..., or as in a run file: '{path: q.onnx, head: q_values}'"
Teacher = Annotated[str, typer.Argument(help=TEACHER_HELP, show_default=False)]
Teachers = Annotated[list[str], typer.Argument(metavar="TEACHER ...", help=TEACHER_HELP, show_default=False)]
Env = Annotated[
    str,
    typer.Option(
        "--env",
        help="Gymnasium id, or as in a run file: '{id: ..., kwargs: {...}, wrappers: [...]}'",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the episodes.")]
Dataset = Annotated[Path, typer.Argument(help="Folder of a dataset, or of its run.", show_default=False)]


def mode_of(resume: bool, overwrite: bool) -> Mode:
    """Return the mode of a stage for the options --resume and --overwrite.

    Raises:
        ConfigError: Both options are given.
    """
    if resume and overwrite:
        raise ConfigError("--resume continues what exists and --overwrite discards it: choose one")
    return "resume" if resume else "overwrite" if overwrite else "new"


def parse_option(option: str, kind: Any, text: str, key: str) -> Any:
    """Return the value of an option that is written as in a run file, or as the value of its `key` alone.

    Raises:
        ConfigError: The value is not valid.
    """
    from pydantic import ValidationError

    from rldistill.core.fields import USER_CODE, explain, read
    from rldistill.run.yaml import parse_value

    value = parse_value(text, option) if text.startswith("{") else {key: text}
    try:
        return read(kind, value, USER_CODE)
    except ValidationError as error:
        raise ConfigError(f"{option}.{explain(error.errors()[0])}") from None


def parse_env(text: str) -> EnvConfig:
    """Return the environment of the option --env."""
    from rldistill.recipes.checks import EnvField

    env: EnvConfig = parse_option("env", EnvField, text, "id")
    return env


def parse_teacher(text: str) -> SavedTeacher:
    """Return the teacher of an argument."""
    from rldistill.teachers.load import SavedTeacher

    teacher: SavedTeacher = parse_option("teacher", SavedTeacher, text, "path")
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
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{option}: {folder} is not writable. Name a file elsewhere.")


def output(quiet: bool, as_json: bool = False) -> AbstractContextManager[Any]:
    """Redirect the tables of the stages: to nowhere if quiet, and to stderr where stdout is for JSON."""
    if quiet:
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


class _Result(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(json.dumps(value, indent=2))


def print_result(result: _Result, as_json: bool) -> None:
    """Print a result as text, or as JSON."""
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
        typer.echo(f"{key:<{width}}  " + f"\n{'':<{width}}  ".join(lines))
