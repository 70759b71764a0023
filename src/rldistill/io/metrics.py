"""Metrics of a stage over time, which trackers read while it goes on (`rldistill.run.tracking`)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import START_AGAIN, read_jsonl, seal, write_atomic
from rldistill.io.storage import publish


class Metrics:
    """Rows of metrics that a stage appends while it runs."""

    def __init__(self, folder: Path, file: str = "metrics.jsonl") -> None:
        self.path = folder / file

    def write(self, rows: Sequence[Mapping[str, Any]], ended: bool = True) -> None:
        """Write `rows` in place of all earlier ones; more can be added if they are not `ended`."""
        content = b"".join(map(_line, [*rows, *([{"rows": len(rows)}] if ended else [])]))
        write_atomic(self.path, lambda temporary: temporary.write_bytes(content))

    def keep(self, rows: int) -> None:
        """Drop all but the first `rows` rows, as after a resume; raise CorruptArtifactError if there are fewer."""
        found = read_jsonl(self.path)
        if len(found) < rows:
            raise CorruptArtifactError(f"{self.path}: found {len(found)} rows, expected at least {rows}. {START_AGAIN}")
        self.write(found[:rows], ended=False)

    def end(self) -> None:
        """Append the number of rows, by which a file that is cut later is known."""
        with self.path.open("ab") as file:
            file.write(_line({"rows": len(read_jsonl(self.path))}))
        publish(self.path)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row at its `step`."""
        with self.path.open("ab") as file:
            file.write(_line(row))
        publish(self.path)


def _line(row: Mapping[str, Any]) -> bytes:
    infinite = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    return seal({**row, **dict.fromkeys(infinite)}, None)  # JSON has no such numbers
