"""Metrics of a stage over time: `metrics.jsonl`, and the same as scalars of TensorBoard under the names of SB3."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from rldistill.io.atomic import read_jsonl, write_atomic

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

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write `rows` in place of all earlier ones."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomic(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        write_atomic(self.events, lambda temporary: _write_events(temporary, rows))

    def keep(self, rows: int) -> None:
        """Drop all but the first `rows` rows, as after a resume."""
        self.write(read_jsonl(self.path)[:rows])

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row at its `step`."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with self.events.open("ab") as file:
            RecordWriter(file).write(_event(row).SerializeToString())


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
