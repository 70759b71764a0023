"""Errors of the command line: foreseeable ones end in one line and a fixed exit code."""

from __future__ import annotations

import errno
import os
import re
import select
import threading
import traceback
from functools import partial
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from rldistill.cli.usage import examples_of
from rldistill.core.errors import RLDistillError, error_text, failure, user_code

EXIT_FALSE, EXIT_ERROR, EXIT_CRASH, EXIT_INTERRUPTED = 1, 2, 70, 130
"""Exit codes: a verified claim does not hold; an error of the user or the system; a defect of rldistill; a stop."""
TRACEBACK = "--traceback"
RESUME = "continue with --resume"
UNWRITABLE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
"""Errors of the system for a path at which nothing can be written."""
_interrupted = threading.Event()


def interrupt(*_: object) -> NoReturn:
    """Raise KeyboardInterrupt, and remember it: an import that it interrupts may raise another error."""
    _interrupted.set()
    raise KeyboardInterrupt


class CommandGroup(TyperGroup):
    """Commands whose foreseeable errors, and all errors of the user's code, end in one line.

    With --traceback, which may stand anywhere, the traceback comes before that line.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments with --traceback at the front, as an option of the whole program."""
        if ctx.parent is None and TRACEBACK in args:
            args = [TRACEBACK, *(arg for arg in args if arg != TRACEBACK)]
        try:
            return super().parse_args(ctx, args)
        except OSError as error:  # of --help and --version, which print at once
            if _is_closed_output(error):
                self._stop(ctx)
            _fail(f"the output cannot be written: {error_text(error).rstrip('.')}. Redirect it elsewhere.", ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, with its examples below its help."""
        command: Any = super().get_command(ctx, cmd_name)
        if command is not None:
            command.epilog = examples_of(f"{ctx.command_path} {cmd_name}".partition(" ")[2])
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the command and turn its errors into messages and exit codes."""
        try:
            return super().invoke(ctx)
        except typer.Exit:  # of a group inside this one, which has printed its message
            raise
        except KeyboardInterrupt:
            self._stop(ctx, "stopped")
        except RLDistillError as error:
            if _interrupted.is_set():
                self._stop(ctx, "stopped")
            _fail(str(error), ctx)
        except (SystemExit, GeneratorExit) as error:  # of a loss or student of the user's
            if _is_closed_output(error):
                self._stop(ctx)
            if (code := user_code(error)) is not None:
                _fail(f"{code} failed: {failure(error)}.", ctx)
            raise
        except Exception as error:
            if _interrupted.is_set():
                self._stop(ctx, "stopped")
            if _is_closed_output(error):
                self._stop(ctx)
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                _fail("there is not enough memory. Use smaller settings.", ctx)
            number, path = _system_error(error)
            # safetensors and torch report a full disk in words, not as an OSError.
            if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
                _fail(f"the disk is full{f' ({path})' if path else ''}. Make room, then {self._again(ctx)}.", ctx)
            if path and number in UNWRITABLE:
                _fail(f"{path}: {os.strerror(number)}. Use another folder (out=...), or make it writable.", ctx)
            if (code := user_code(error)) is not None:
                _fail(f"{code} failed: {failure(error)}.", ctx)
            if number:
                # Arrow names the path in its message only.
                text = error_text(error).rstrip(".") if isinstance(error, OSError) else os.strerror(number)
                problem = f"{path}: {os.strerror(number)}" if path else text
                hint = (
                    "Raise `ulimit -n`, or use fewer workers" if number in (errno.EMFILE, errno.ENFILE) else "Repair it"
                )
                _fail(f"{problem}. {hint}, then {self._again(ctx)}.", ctx)
            raise

    def _again(self, ctx: Any) -> str:
        """Return the advice for a command that did not end: to continue, if it can."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        resumable = command is not None and any("--resume" in option.opts for option in command.params)
        return RESUME if resumable else "try again"

    def _stop(self, ctx: Any, text: str = "") -> NoReturn:
        """End the command after Ctrl-C, or after the reader of its output has ended; print how to continue."""
        if (again := self._again(ctx)) == RESUME:
            text = f"stopped; {again}"
        for number in _closed_outputs():  # to which even the last flush would fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        if text:
            typer.echo(text, err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _is_closed_output(error: BaseException) -> bool:
    """Return True for a write to a pipe whose reader has ended, as that of `| head`."""
    if isinstance(error, SystemExit):  # which rich makes of it, after it has discarded the output
        return isinstance(error.__context__, BrokenPipeError)
    return isinstance(error, BrokenPipeError) and bool(_closed_outputs())


def _closed_outputs() -> list[int]:
    """Return the numbers of stdout and stderr if they are pipes without a reader."""
    outputs = select.poll()
    for number in (1, 2):
        outputs.register(number, 0)
    return [number for number, event in outputs.poll(0) if event & select.POLLERR]


def _system_error(error: BaseException | None) -> tuple[int | None, Any]:
    """Return the number and the path of the error of the system behind an error; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno, error.filename
        if match := re.search(r"\(os error (\d+)\)", str(error)):  # in words, by libraries in Rust
            return int(match[1]), None
        error = error.__cause__ or error.__context__
    return None, None


def _fail(message: str, ctx: Any) -> NoReturn:
    if ctx.find_root().params.get("show_traceback"):
        traceback.print_exc()
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(EXIT_ERROR) from None


command_group = partial(typer.Typer, cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None)
"""Constructor of a group of commands."""
