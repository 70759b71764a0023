"""Every error that a user can cause, in one tree."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

LONGEST = 1_500
FETCH_AGAIN = "copy or download it again"
SAVE_AGAIN = "save it again, from weights that are numbers"


class RLDistillError(Exception):
    """Base of all errors that say what was wrong, where, and what to do; what a file put into one cannot flood it."""

    def __init__(self, message: str = "") -> None:
        text = message if len(message) <= LONGEST else f"{message[: LONGEST - 200]} ... {message[-180:]}"
        super().__init__("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


class ConfigError(RLDistillError):
    """A run file, an override or an argument that cannot be used."""


class SpecMismatchError(RLDistillError):
    """Two things that must fit each other (teacher, environment, dataset, student) do not."""


class UntrustedFileError(RLDistillError):
    """A file that could run code, or that is not what it claims to be."""


class CorruptArtifactError(RLDistillError):
    """A file of ours that is truncated, altered or incomplete."""


class NothingLearnedError(RLDistillError):
    """A student that predicts no better than a constant would."""


class MissingExtraError(RLDistillError):
    """An optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency. Install it: pip install 'rldistill[{extra}]'")


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 60, 60
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 4


def shown(value: Any) -> str:
    """A value from elsewhere, in a few words, however large it is and however often it holds itself."""
    return _short.repr(value)


def why(error: Exception) -> str:
    """What a library says of its failure, in one line; the kind of error where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the known name nearest to `name`, or an empty string."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""
