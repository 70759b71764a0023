"""Progress of a stage that takes over two seconds: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from rldistill.core.errors import ConfigError, short_repr

MIN_DURATION_S = 2.0
LINE_INTERVAL_S = 20.0
MIN_RATE_INTERVAL_S = 0.5
"""Shorter intervals give no rate: two streams may end in the same moment."""


class Progress(Protocol):
    """Receiver of the progress of a stage."""

    def update(self, done: int, total: int, score: float | None = None) -> None:
        """Report the finished and all units of work, and the latest score if there is one."""


class Silent:
    """Progress that shows nothing."""

    def update(self, done: int, total: int, score: float | None = None) -> None:
        """Ignore the report."""


SILENT = Silent()


@dataclass(frozen=True)
class Part:
    """Progress of a part of a task that begins after `before` of all `total` units; None counts this part alone."""

    task: Progress
    before: int
    total: int | None = None

    def update(self, done: int, total: int, score: float | None = None) -> None:
        """Report to the task."""
        self.task.update(self.before + done, self.before + total if self.total is None else self.total, score)


@dataclass(frozen=True)
class Round:
    """Progress of one of several equally long rounds of a task."""

    task: Progress
    number: int
    rounds: int

    def update(self, done: int, total: int, score: float | None = None) -> None:
        """Report to the task."""
        self.task.update(self.number * total + done, self.rounds * total, score)


class _Display:
    """Progress with its rate, the remaining time and the score."""

    def __init__(self, title: str, unit: str, stack: ExitStack) -> None:
        self.title, self.unit, self.stack = title, unit, stack
        self.started = time.monotonic()
        self.first: tuple[float, int] | None = None

    def update(self, done: int, total: int, score: float | None = None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now, done
        elapsed = now - self.first[0]
        # A resumed task does not count the work of its earlier runs.
        rate = (done - self.first[1]) / elapsed if elapsed > MIN_RATE_INTERVAL_S else 0.0
        if now - self.started >= MIN_DURATION_S:
            self.show(now, done, total, rate, "" if score is None else f"score {score:.4g}")

    def show(self, now: float, done: int, total: int, rate: float, score: str) -> None:
        raise NotImplementedError

    def rate_text(self, rate: float) -> str:
        if rate >= 1:
            return f"{rate:,.0f} {self.unit}/s"
        return f"{1 / rate:,.0f} s each" if rate else ""


class _Lines(_Display):
    last = 0.0
    finished = -1  # the total at the end; a task may turn out to have more

    def show(self, now: float, done: int, total: int, rate: float, score: str) -> None:
        if self.finished >= total or (now - (self.last or self.started) < LINE_INTERVAL_S and done < total):
            return
        self.last, self.finished = now, total if done >= total else self.finished
        left = f"{(total - done) / rate:,.0f} s left" if rate and done < total else ""
        details = ", ".join(filter(None, [self.rate_text(rate), left, score]))
        text = f"{self.title}: {done:,}/{total:,} {self.unit}" + f" ({details})" * bool(details)
        print(text, file=sys.stderr, flush=True)


class _Bar(_Display):
    def show(self, now: float, done: int, total: int, rate: float, score: str) -> None:
        if not hasattr(self, "bar"):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn()
            more = TextColumn("{task.fields[details]}"), TimeRemainingColumn()
            self.bar = self.stack.enter_context(Progress(*columns, *more, console=Console(stderr=True)))
            self.task = self.bar.add_task(self.title, total=None, details="")
        details = ", ".join(filter(None, [self.rate_text(rate), score]))
        self.bar.update(self.task, completed=done, total=total, details=details)


@contextmanager
def track(title: str, unit: str, quiet: bool = False) -> Iterator[Progress]:
    """Show the progress of a task on stderr, as a bar on a terminal and as lines elsewhere."""
    with ExitStack() as stack:
        yield SILENT if quiet else (_Bar if sys.stderr.isatty() else _Lines)(title, unit, stack)


@contextmanager
def stage_progress(progress: Progress | bool, title: str, unit: str) -> Iterator[Progress]:
    """Resolve the `progress` argument of a stage: True shows a bar if stderr is a terminal, False shows nothing.

    Raises:
        ConfigError: `progress` has no method `update`.
    """
    if isinstance(progress, bool):
        with track(title, unit, quiet=not (progress and sys.stderr.isatty())) as bar:
            yield bar
    elif callable(getattr(progress, "update", None)):
        yield progress
    else:
        raise ConfigError(
            f"progress: expected True, False or an object with update(done, total, score), found {short_repr(progress)}"
        )
