"""Progress of whatever takes over two seconds: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]
"""Called with what is done and what there is in all."""

LINE_EVERY = 20.0


class Shown:
    """What `track` gives: called with what is done and what there is in all, and told the score so far."""

    def __init__(self, show: Callable[[int, int, float | None], None]) -> None:
        self._show = show
        self.score: float | None = None

    def __call__(self, done: int, total: int) -> None:
        self._show(done, total, self.score)


def note_score(report: Report, score: float | None) -> None:
    """Let the progress of a stage show how well it does so far, where it is shown to a person."""
    if isinstance(report, Shown) and score is not None:
        report.score = score


@contextmanager
def track(title: str, unit: str, quiet: bool = False) -> Iterator[Report]:
    """Show the progress of one task with its rate and the time that is left."""
    if quiet:
        yield Shown(lambda done, total, score: None)
    elif sys.stderr.isatty():
        with _bar(title, unit) as show:
            yield Shown(show)
    else:
        yield Shown(_lines(title, unit))


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Callable[[int, int, float | None], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None, rate="")
        rate_of = _rate()

        def show(done: int, total: int, score: float | None) -> None:
            pace = ", ".join(filter(None, [_rate_text(rate_of(done), unit), _score_text(score)]))
            progress.update(task, completed=done, total=total, rate=pace)

        yield show


def _lines(title: str, unit: str) -> Callable[[int, int, float | None], None]:
    started = last = time.monotonic()
    rate_of = _rate()
    finished = -1  # at which total; a task may turn out to have more

    def show(done: int, total: int, score: float | None) -> None:
        nonlocal last, finished
        rate, now = rate_of(done), time.monotonic()
        if finished >= total or (now - last < LINE_EVERY and done < total) or now - started < 2:
            return
        last, finished = now, total if done >= total else finished
        left = f"{(total - done) / rate:,.0f} s left" if rate and done < total else ""
        pace = ", ".join(filter(None, [_rate_text(rate, unit), left, _score_text(score)]))
        print(f"{title}: {done:,}/{total:,} {unit}" + f" ({pace})" * bool(pace), file=sys.stderr, flush=True)

    return show


def _score_text(score: float | None) -> str:
    return "" if score is None else f"score {score:.4g}"


def _rate_text(rate: float, unit: str) -> str:
    """So many a second, or so many seconds each; nothing before there is a rate."""
    if rate >= 1:
        return f"{rate:,.0f} {unit}/s"
    return f"{1 / rate:,.0f} s each" if rate else ""


LEAST = 0.5
"""Seconds between reports below which their rate says nothing: two streams may end in the same moment."""


def _rate() -> Callable[[int], float]:
    """What was done since the first report, a second: what a resumed task had done before does not count."""
    first: tuple[float, int] | None = None

    def rate_of(done: int) -> float:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now, done
        elapsed = now - first[0]
        return (done - first[1]) / elapsed if elapsed > LEAST else 0.0

    return rate_of
