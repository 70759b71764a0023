"""Progress of whatever takes over two seconds: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]
"""Called with what is done and what there is in all."""

LINE_EVERY = 20.0


@contextmanager
def track(title: str, unit: str, quiet: bool = False) -> Iterator[Report]:
    """Show the progress of one task with its rate and the time that is left."""
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(title, unit) as report:
            yield report
    else:
        yield _lines(title, unit)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Report]:
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
        started = time.monotonic()

        def report(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - started, 1e-9)
            progress.update(task, completed=done, total=total, rate=f"{rate:,.0f} {unit}/s" if rate >= 1 else "")

        yield report


def _lines(title: str, unit: str) -> Report:
    started = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if (now - last < LINE_EVERY and done < total) or now - started < 2:
            return
        last = now
        rate = done / (now - started)
        left = (total - done) / rate if rate else 0
        print(f"{title}: {done:,}/{total:,} {unit} ({rate:,.0f}/s, {left:,.0f} s left)", file=sys.stderr, flush=True)

    return report
