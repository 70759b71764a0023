"""Errors that a user can cause, in one tree."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

MAX_MESSAGE_CHARS = 1_500
DOWNLOAD_HINT = "copy or download it again"
RESAVE_HINT = "save it again, from weights that are finite"


class RLDistillError(Exception):
    """Base of all errors; the message names the problem, its place and the remedy.

    Messages quote untrusted files, so they are shortened and control characters are escaped.
    """

    def __init__(self, message: str = "") -> None:
        text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in message)
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


def error_text(error: Exception) -> str:
    """Return the message of another library's error in one line, or its class if it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest of `names`, or an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[matches[0]]!r}?" if matches else ""
