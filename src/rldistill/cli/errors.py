"""Errors of the command line: foreseeable ones end in one line and a fixed exit code."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import Any

import typer
from typer.core import TyperGroup

from rldistill.core.errors import RLDistillError

EXIT_FALSE, EXIT_ERROR, EXIT_CRASH, EXIT_INTERRUPTED = 1, 2, 70, 130
"""Exit codes: a verified claim does not hold; an error of the user or the system; a defect of rldistill; Ctrl-C."""
UNWRITABLE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
"""Errors of the system for a path at which nothing can be written."""


class CommandGroup(TyperGroup):
    """Commands whose foreseeable errors end in one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command and turn its errors into messages and exit codes."""
        try:
            return super().invoke(ctx)
        except RLDistillError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            resumable = command is not None and any("--resume" in option.opts for option in command.params)
            typer.echo("stopped; continue with --resume" if resumable else "stopped", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except Exception as error:
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                _fail("there is not enough memory. Use smaller settings.")
            number, path = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
            # safetensors and torch report a full disk in words, not as an OSError.
            if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
                _fail(f"the disk is full{f' ({path})' if path else ''}. Make room, then continue with --resume.")
            if path and number in UNWRITABLE:
                _fail(f"{path}: {os.strerror(number)}. Use another folder (out=...), or make it writable.")
            raise


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(EXIT_ERROR) from None


command_group = partial(typer.Typer, cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None)
"""Constructor of a group of commands."""
