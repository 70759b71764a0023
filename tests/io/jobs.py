"""Work of jobs that run in other processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from rldistill.core.errors import ConfigError
from rldistill.io.processes import Report, shared_cache


@shared_cache
def slow_answer(folder: str) -> int:
    (Path(folder) / f"computed-{os.getpid()}").touch()
    return 42


def surroundings(folder: str, item: int, report: Report) -> tuple[int, str | None]:
    return slow_answer(folder), os.environ.get("RLDISTILL_TEST")


def square(item: int, report: Report) -> int:
    report(item, 1)
    return item * item


def sleep_and_tell(item: int, report: Report) -> tuple[int, int]:
    time.sleep(0.2 * (3 - item))
    return item, os.getpid()


def killed(folder: str, times: int, item: int, report: Report) -> int:
    """Report a unit, and end by SIGKILL in the first calls of item 1."""
    report(1, 0)
    calls = Path(folder) / f"{item}"
    number = len(calls.read_text()) if calls.exists() else 0
    calls.write_text("x" * (number + 1))
    if item == 1 and number < times:
        time.sleep(0.4)
        report(1, 0)  # is sent, and then counts no more
        os.kill(os.getpid(), signal.SIGKILL)
    return item


class Unreadable(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def fail(kind: str, item: int, report: Report) -> Any:
    if kind == "own":
        raise ConfigError("here: wrong. Do it again.")
    if kind == "system":
        raise OSError(28, "No space left on device", "file")
    if kind == "unreadable":
        raise Unreadable(1, 2)
    return item


def wait_for_ever(folder: str, item: int, report: Report) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)
