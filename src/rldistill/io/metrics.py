"""Metrics of a stage over time: `metrics.jsonl`, and the same as scalars of TensorBoard under the names of SB3."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import START_AGAIN, read_jsonl, seal, write_atomic
from rldistill.io.storage import publish

EVENTS = "events.out.tfevents.0.rldistill"
NAMES = {
    "return": "rollout/ep_rew_mean",
    "score": "eval/mean_reward",
    "mean": "eval/mean_reward",
    "train_loss": "train/loss",
    "heldout_loss": "eval/loss",
    "agreement": "eval/agreement",
    "updates": "train/n_updates",
    "update": "train/n_updates",
    "seconds": "time/time_elapsed",
}
"""Names of our columns in TensorBoard; any other column is `train/` and its own name."""


class Metrics:
    """Rows of metrics that a stage appends while it runs."""

    def __init__(self, folder: Path, file: str = "metrics.jsonl") -> None:
        self.path, self.events = folder / file, folder / EVENTS

    def write(self, rows: Sequence[Mapping[str, Any]], ended: bool = True) -> None:
        """Write `rows` in place of all earlier ones; more can be added if they are not `ended`."""
        content = b"".join(map(_line, [*rows, *([{"rows": len(rows)}] if ended else [])]))
        write_atomic(self.path, lambda temporary: temporary.write_bytes(content))
        write_atomic(self.events, lambda temporary: _write_events(temporary, rows))

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
        with self.events.open("ab") as file:
            RecordWriter(file).write(_event(row).SerializeToString())


def _line(row: Mapping[str, Any]) -> bytes:
    infinite = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    return seal({**row, **dict.fromkeys(infinite)}, None)  # JSON has no such numbers


def _write_events(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for row in rows:
            writer.write(_event(row).SerializeToString())


def _event(row: Mapping[str, Any]) -> Event:
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    values = [Summary.Value(tag=NAMES.get(name, f"train/{name}"), simple_value=float(v)) for name, v in numbers.items()]
    return Event(wall_time=time.time(), step=int(row["step"]), summary=Summary(value=values))
