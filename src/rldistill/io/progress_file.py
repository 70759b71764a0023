"""Progress of a run in a file of its folder, which other processes read."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from rldistill.core.errors import CorruptArtifactError, error_text
from rldistill.io.atomic import Document, seal, unseal
from rldistill.io.untrusted import read_own

FILE, MARK = ".progress.json", "provenance.json"
"""Name of the file, and of one that each folder of a run has."""
SAVE_INTERVAL_S, MAX_COST = 1.0, 0.005
"""Time between two writes, and the largest share of a run's time that they take."""
MAX_LINES, MAX_BYTES, MIN_RATE = 30, 256 << 10, 1e-9
_active = threading.local()

Time = Annotated[float, Ge(0), Le(1e11)]
"""Unix time in seconds."""
Count = Annotated[int, Ge(0), Le(1 << 53)]


class ProgressRecord(Document):
    """Progress of a run, or of a part of it in another process.

    Attributes:
        state: `running` also if the process was killed; the lock of the folder shows which.
        title: Task, with its finished and all units, rate in units per second (0: unknown), latest score, and note.
        log: Time and text of the latest lines.
    """

    state: Literal["running", "finished", "stopped", "failed"]
    title: str
    unit: str
    done: Count
    total: Count
    rate: Annotated[float, Ge(0)]
    score: float | None
    note: str
    started: Time
    updated: Time
    log: list[tuple[Time, str]]

    @property
    def seconds_left(self) -> float | None:
        """Remaining time of the task in seconds; None if it is unknown."""
        return (self.total - self.done) / self.rate if self.rate > MIN_RATE and self.total > self.done else None

    @classmethod
    def read(cls, path: Path) -> "ProgressRecord":
        """Read a file; raise CorruptArtifactError or UntrustedFileError if it is none that a run wrote."""
        try:
            return cls.parse(unseal(read_own(path, MAX_BYTES), None), path)
        except (OSError, ValueError) as error:
            raise CorruptArtifactError(f"{path}: cannot be read ({error_text(error)}).") from None


class ProgressFile:
    """File to which a run writes its progress, seldom enough for the run to lose no time.

    It is not synced: a file that a crash of the system cut is only ignored.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.saved, self.next_save = path, False, -math.inf
        self.log = deque[tuple[float, str]](maxlen=MAX_LINES)
        self.values: dict[str, Any] = {"state": "running", "started": time.time()}

    def update(self, **values: Any) -> None:
        """Replace the values of a task."""
        self.values |= values
        if time.monotonic() >= self.next_save:
            self.save()

    def add_line(self, text: str) -> None:
        """Append a line to the log, which the next write includes."""
        self.log.append((time.time(), text))

    def save(self) -> None:
        """Write the file if its folder is that of a run; delete it if the folder is no longer one."""
        now, values = time.monotonic(), self.values
        numbers = {key: int(values[key]) for key in ("done", "total")}
        score = None if values["score"] is None or not math.isfinite(values["score"]) else float(values["score"])
        document = values | numbers | {"score": score, "updated": time.time(), "log": [*self.log]}
        temporary = self.path.with_name(f".0.tmp.{self.path.name}")
        with suppress(OSError):  # progress is no reason to stop a run
            if (self.path.parent / MARK).exists():
                try:
                    temporary.write_bytes(seal(document, None))
                    temporary.replace(self.path)
                finally:
                    temporary.unlink(missing_ok=True)
                self.saved = True
            else:
                self.path.unlink(missing_ok=True)
        duration = time.monotonic() - now
        self.next_save = now + max(SAVE_INTERVAL_S, duration / MAX_COST)

    def end(self, state: str, line: str) -> None:
        """Write the end of the run; nothing if it refused to start, so that the record of an earlier run stays."""
        if self.saved:
            self.add_line(line)
            self.values["state"] = state
            self.save()


def active_file() -> ProgressFile | None:
    """Return the file of the run that this thread executes."""
    return getattr(_active, "file", None)


@contextmanager
def record_progress(folder: Path, part: str = "") -> Iterator[None]:
    """Record the progress of the tasks in this block; within another such block do nothing.

    A `part` of a run in a process of its own has a file of its own, until it ends.
    """
    if active_file() is not None:
        yield
        return
    file = _active.file = ProgressFile(folder / (f".progress.{part}.json" if part else FILE))
    if not part:
        for path in part_files(folder):  # of workers that were killed
            with suppress(OSError):
                path.unlink()
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        file.end(*("stopped", "stopped") if interrupted else ("failed", f"error: {error_text(error)}"))
        raise
    else:
        seconds = time.time() - file.values["started"]
        file.end("finished", f"finished after {duration_text(seconds)}")
    finally:
        _active.file = None
        if part:
            with suppress(OSError):
                file.path.unlink(missing_ok=True)


def part_files(folder: Path) -> list[Path]:
    """Return the progress files of the parts of a run."""
    return sorted(folder.glob(".progress.*.json"))


def rate_text(rate: float, unit: str) -> str:
    """Return a rate in units per second, or the seconds of each unit; empty without a rate."""
    return f"{rate:,.0f} {unit}/s" if rate >= 1 else f"{1 / rate:,.0f} s each" if rate else ""


def duration_text(seconds: float) -> str:
    """Return a duration as text, such as `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
