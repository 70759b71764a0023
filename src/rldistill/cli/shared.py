"""What all verbs share: errors in one line, arguments of the same name and help, where output goes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rldistill.core.errors import ConfigError, RLDistillError

if TYPE_CHECKING:
    from rldistill.io.atomic import Mode

FAILED, INTERRUPTED = 2, 130
NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
"""What the system says of a place where nothing can be written."""


class Verbs(TyperGroup):
    """Verbs whose foreseeable failures end in one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RLDistillError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            verb = self.get_command(ctx, ctx.invoked_subcommand or "")
            goes_on = verb is not None and any("--resume" in option.opts for option in verb.params)
            typer.echo("stopped; go on with --resume" if goes_on else "stopped", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except MemoryError:
            _fail("there is not enough memory for that; ask for less")
        except Exception as error:
            if "can't allocate memory" in str(error):
                _fail("there is not enough memory for that; ask for less")
            where = error.filename if isinstance(error, OSError) else None
            if _disk_full(error):
                _fail(f"the disk is full{f' ({where})' if where else ''}: make room, then go on with --resume")
            if where and isinstance(error, OSError) and error.errno in NO_PLACE:
                _fail(f"{where}: {error.strerror}; name another place (folder=...), or make room for it there")
            raise


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(FAILED) from None


def _disk_full(error: Exception) -> bool:
    # safetensors and torch report it in words, not as an OSError.
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


File = Annotated[Path, typer.Argument(help="The run file, in YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Count over the file: distill.epochs=3", show_default=False),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw away what is there.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not look at a teacher from elsewhere first.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Teacher = Annotated[str, typer.Argument(help="zoo:NAME, a policy's folder, an SB3 zip.", show_default=False)]
Env = Annotated[str, typer.Option("--env", help="A Gymnasium id, or module:function.", show_default=False)]
EnvArgument = Annotated[
    list[str] | None, typer.Option("--env-kwarg", metavar="KEY=VALUE", help="Of the environment.", show_default=False)
]
Seed = Annotated[int, typer.Option("--seed", min=0)]
Dataset = Annotated[Path, typer.Argument(help="A dataset's folder, or that of its run.", show_default=False)]


def mode_of(resume: bool, overwrite: bool) -> Mode:
    """Return the mode of a stage for the options --resume and --overwrite.

    Raises:
        ConfigError: both options are given.
    """
    if resume and overwrite:
        raise ConfigError("--resume continues what exists and --overwrite discards it: choose one")
    return "resume" if resume else "overwrite" if overwrite else "new"


def require_new(path: Path | None, option: str, again: bool = False) -> None:
    """Raise ConfigError, before any work, for a file that cannot be written, or, unless `again`, that exists."""
    if path is None:
        return
    if path.is_dir() or not path.name:
        raise ConfigError(f"{option}: {path} is a folder; name a file in it")
    if path.exists() and not again:
        raise ConfigError(f"{option}: {path} exists; name another file, or remove it")
    if not os.access(there := next(place for place in path.absolute().parents if place.exists()), os.W_OK):
        raise ConfigError(f"{option}: nothing can be written in {there}; name another place")


def output(quiet: bool, as_json: bool = False) -> AbstractContextManager[Any]:
    """Where the stages' tables go: nowhere if quiet, and to stderr where stdout is for JSON."""
    if quiet:
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def show(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=2))
        return
    width = max(map(len, value))
    for key, item in value.items():
        lines = [f"{name} {found}" for name, found in item.items()] if isinstance(item, dict) else [str(item)]
        typer.echo(f"{key:<{width}}  " + f"\n{'':<{width}}  ".join(lines))
