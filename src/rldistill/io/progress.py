"""Progress of a stage that takes over two seconds: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from rldistill.core.errors import ConfigError, printable, short_repr
from rldistill.io.progress_file import active_file, rate_text

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
    """Progress with its rate, the remaining time and the score, within `stack`, and in the file of the run if any."""

    def __init__(self, title: str, unit: str, stack: ExitStack, quiet: bool = False) -> None:
        self.title, self.unit, self.stack, self.quiet = printable(title), unit, stack, quiet
        self.started = self.last_line = time.monotonic()
        self.finished = -1  # the total at the end; a task may turn out to have more
        self.first: tuple[float, int] | None = None
        self.note, self.file = "", active_file()
        if self.file is not None and self.file.saved:  # not before a run has begun, since it may refuse to
            self.record("", done=0, total=0, rate=0.0, score=None)

    def update(self, done: int, total: int, score: float | None = None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now, done
        elapsed = now - self.first[0]
        # A resumed task does not count the work of its earlier runs.
        rate = (done - self.first[1]) / elapsed if elapsed > MIN_RATE_INTERVAL_S else 0.0
        speed = rate_text(rate, self.unit)
        score_text = "" if score is None else f"score {score:.4g}"
        line = ""
        if self.finished < total and (done >= total or now - self.last_line >= LINE_INTERVAL_S):
            self.last_line, self.finished = now, total if done >= total else self.finished
            left = f"{(total - done) / rate:,.0f} s left" if rate and done < total else ""
            details = ", ".join(filter(None, [speed, left, self.note, score_text]))
            line = f"{self.title}: {done:,}/{total:,} {self.unit}" + f" ({details})" * bool(details)
        if self.file is not None:
            self.record(line, done=done, total=total, rate=max(rate, 0.0), score=score)
        if self.quiet or now - self.started < MIN_DURATION_S:
            return
        if sys.stderr.isatty():
            self.show_bar(done, total, ", ".join(filter(None, [speed, self.note, score_text])))
        elif line:
            print(line, file=sys.stderr, flush=True)

    def record(self, line: str, **values: float | None) -> None:
        assert self.file is not None
        if line:
            self.file.add_line(line)
        self.file.update(title=self.title, unit=self.unit, note=self.note, **values)

    def show_bar(self, done: int, total: int, details: str) -> None:
        if not hasattr(self, "bar"):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description:<28}", markup=False), BarColumn(), MofNCompleteColumn()
            more = TextColumn("{task.fields[details]}", markup=False), TimeRemainingColumn()
            self.bar = self.stack.enter_context(Progress(*columns, *more, console=Console(stderr=True)))
            self.task = self.bar.add_task(self.title, total=None, details="")
        self.bar.update(self.task, description=self.title, completed=done, total=total, details=details)


def set_note(progress: Progress, text: str) -> None:
    """Show a further figure beside the progress, if it is shown by this package."""
    if isinstance(progress, _Display):
        progress.note = text


@contextmanager
def subtask(progress: Progress, title: str, unit: str) -> Iterator[Progress]:
    """Show another task in the place of one that waits for it, if that is shown by this package."""
    if not isinstance(progress, _Display):
        yield SILENT
        return
    before = progress.title, progress.unit, progress.first, progress.finished
    progress.title, progress.unit, progress.first, progress.finished = title, unit, None, -1
    yield progress
    progress.title, progress.unit, progress.first, progress.finished = before
    progress.note = ""


@contextmanager
def track(title: str, unit: str, quiet: bool = False) -> Iterator[Progress]:
    """Show the progress of a task on stderr, as a bar on a terminal and as lines elsewhere, and record it in a run."""
    with ExitStack() as stack:
        yield SILENT if quiet and active_file() is None else _Display(title, unit, stack, quiet)


def is_shown(progress: Progress | bool) -> bool:
    """Return True if the `progress` of a stage is shown on stderr by this package."""
    return progress is True or (isinstance(progress, _Display) and not progress.quiet)


@contextmanager
def stage_progress(progress: Progress | bool, title: str, unit: str) -> Iterator[Progress]:
    """Resolve the `progress` of a stage, where True shows it on stderr; raise ConfigError if it is none."""
    if isinstance(progress, bool):
        with track(title, unit, quiet=not progress) as display:
            yield display
    elif callable(getattr(progress, "update", None)):
        yield progress
    else:
        raise ConfigError(
            f"progress: expected True, False or an object with update(done, total, score), found {short_repr(progress)}"
        )
