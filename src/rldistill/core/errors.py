"""Errors that a user can cause, in one tree."""

import difflib
import reprlib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import CodeType
from typing import Any

MAX_MESSAGE_CHARS = 1_500
DOWNLOAD_HINT = "copy or download it again"
RESAVE_HINT = "save it again, from weights that are finite"
USER_ERRORS = (Exception, SystemExit, GeneratorExit)
"""Classes that code of a user may raise; Ctrl-C and our own signals are not among them."""
OWN_FOLDER = str(Path(__file__).resolve().parents[1])
LIBRARIES = (sysconfig.get_paths()["stdlib"], OWN_FOLDER, "<frozen")


def printable(text: str) -> str:
    """Return text of an untrusted file for a terminal, with control characters other than line breaks escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class RLDistillError(Exception):
    """Base of all errors; the message names the problem, its place and the remedy.

    Messages quote untrusted files, so they are shortened and control characters are escaped.
    """

    def __init__(self, message: str = "") -> None:
        text = printable(message)
        # Escaped first, so that the copy of another process, which pickle makes with this text, is the same.
        if len(text) > MAX_MESSAGE_CHARS:
            text = f"{text[: MAX_MESSAGE_CHARS - 200]} ... {text[-180:]}"
        super().__init__(text)


class ConfigError(RLDistillError):
    """Invalid run file, override or argument."""


class SpecMismatchError(RLDistillError):
    """Mismatch of teacher, environment, dataset or student."""


class UntrustedFileError(RLDistillError):
    """File that could run code, or has another format than its name."""


class CorruptArtifactError(RLDistillError):
    """Truncated, altered or incomplete file of this package."""


class NothingLearnedError(RLDistillError):
    """Student that predicts no better than a constant."""


class MissingExtraError(RLDistillError):
    """Optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency. Install it: pip install 'rldistill[{extra}]'")
        self.feature, self.extra = feature, extra

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.feature, self.extra)


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 60, 60
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 4


def short_repr(value: Any) -> str:
    """Return a short representation of an untrusted value, even if it is large or contains itself."""
    try:
        return _short.repr(value)
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return f"a {type(value).__name__} too long to print"


def is_library(file: str) -> bool:
    """Return True if a file of Python code belongs to this package, to the standard library or to a site package."""
    return file.startswith(LIBRARIES) or "site-packages" in file or "dist-packages" in file


def user_code(error: BaseException) -> str | None:
    """Return the name of the innermost code outside of all libraries in which an error was raised, if there is any."""
    if (place := _user_place(error)) is None:
        return None
    code = place[0]
    return f"import of {Path(code.co_filename).name}" if code.co_name == "<module>" else code.co_qualname


def failure(error: BaseException) -> str:
    """Return an error of the user's code in one line: `RuntimeError: no power (my_env.py, line 41)`.

    Without a line outside of all libraries, the place is the line that raised it; a syntax error has its own place.
    """
    text = error_text(error)
    if text != type(error).__name__:
        text = f"{type(error).__name__}: {text}"
    places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    code, line = _user_place(error) or (places[-1] if places else (None, 0))
    if code is None or code.co_filename.startswith("<") or isinstance(error, SyntaxError):
        return text
    file, here = Path(code.co_filename), Path.cwd()
    return f"{text} ({file.relative_to(here) if file.is_relative_to(here) else file}, line {line})"


def _user_place(error: BaseException) -> tuple[CodeType, int] | None:
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        # Compiled modules name their source, such as pyarrow/error.pxi, which is not installed.
        if not is_library(frame.f_code.co_filename) and not is_library(str(frame.f_globals.get("__file__"))):
            return frame.f_code, line
    return None


def error_text(error: BaseException) -> str:
    """Return the message of another library's error in one line, or its class if it has none."""
    try:
        return " ".join(str(error).split())[:300] or type(error).__name__
    except Exception:  # the message is computed by code of the user
        return type(error).__name__


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest of `names`, or an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[matches[0]]!r}?" if matches else ""
