"""Line charts: learning curves, sample efficiency and performance profiles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rldistill.evaluation.results import Evaluation
from rldistill.io.atomic import read_jsonl
from rldistill.reporting.charts import Line, LineStyle, Series, bulk, lines_chart, palette

TitledChart = tuple[str, Markup]
CONTROL_SUFFIX = "-scratch"
"""Suffix of the name of a student that learned from reward alone."""

EPOCH_METRICS = (
    ("heldout_loss", "Students: loss on held-out episodes"),
    ("agreement", "Students: agreement with the teacher on held-out episodes"),
)
STEP_METRICS = (
    ("return", "Students: return of training episodes"),
    ("score", "Students: return of validation episodes"),
)


def learning_charts(run: Path, evaluation: Evaluation) -> Iterator[TitledChart]:
    """Yield the learning curves of the teacher and the students.

    Raises:
        CorruptArtifactError: a curve is broken.
    """
    colors = palette(evaluation.policies)
    curve = _points(read_jsonl(run / "teacher" / "curve.jsonl"), "step", "mean")
    if curve:
        title = "Teacher: mean return during training"
        style = LineStyle(colors={"teacher": "teacher"})
        yield title, lines_chart({"teacher": curve}, "environment steps", title, style)
    places = ((run / "controls", CONTROL_SUFFIX), (run / "students", ""))
    folders = {f"{own.name}{suffix}": own for folder, suffix in places for own in folder.glob("*") if own.is_dir()}
    folders = {name: folders[name] for name in colors if name in folders}
    for metrics, across, lines_of in (
        (EPOCH_METRICS, "epochs", epoch_lines),
        (STEP_METRICS, "environment steps", step_lines),
    ):
        for key, title in metrics:
            seeds = {name: lines for name, path in folders.items() if (lines := lines_of(path, key))}
            if seeds:
                means: Series = {name: _mean_line(lines) for name, lines in seeds.items()}
                thin = {name: lines for name, lines in seeds.items() if len(lines) > 1}
                yield title, lines_chart(means, across, title, LineStyle(colors=colors, thin=thin))


def efficiency_charts(evaluation: Evaluation) -> Iterator[TitledChart]:
    """Yield the normalized score against environment steps, the teacher's data included."""
    curves: Series = {name: found.curve for name, found in evaluation.efficiency.items() if found.curve}
    # If all curves are points at the same step, the table shows the same better.
    if len({x for curve in curves.values() for x, _ in curve}) > 1:
        title = "Normalized score against environment steps"
        yield title, lines_chart(curves, "environment steps", title, LineStyle(colors=palette(evaluation.policies)))


def profiles_chart(evaluation: Evaluation) -> Markup | None:
    """Return the share of episodes above each return; None if all returns are equal."""
    at = evaluation.profile_at
    if at[0] == at[-1]:
        return None
    profiles = {name: entry.profile for name, entry in evaluation.policies.items()}
    style = LineStyle(
        colors=palette(evaluation.policies),
        bands={name: list(zip(at, own.low, own.high, strict=True)) for name, own in profiles.items()},
        x_range=bulk([value for entry in evaluation.policies.values() for value in entry.returns]),
    )
    lines: Series = {name: list(zip(at, own.share, strict=True)) for name, own in profiles.items()}
    return lines_chart(lines, "return", "share of episodes with a higher return", style)


def epoch_lines(student: Path, key: str) -> list[Line]:
    """Return a line for each training seed; the rounds of DAgger follow one another."""
    lines = []
    for seed in sorted(student.glob("seed-*")):
        rounds = sorted(seed.glob("round-*"), key=lambda folder: int(folder.name.removeprefix("round-")))
        rows = [row for folder in (*rounds, seed) for row in read_jsonl(folder / "metrics.jsonl")]
        epochs = [row for row in rows if "epoch" in row]
        lines.append(_points([{**row, "epoch": number} for number, row in enumerate(epochs, 1)], "epoch", key))
    return [line for line in lines if line]


def step_lines(student: Path, key: str) -> list[Line]:
    """Return a line for each training seed that learned from reward."""
    lines = [
        _points([row for row in read_jsonl(seed / "metrics.jsonl") if "epoch" not in row], "step", key)
        for seed in sorted(student.glob("seed-*"))
    ]
    return [line for line in lines if line]


def _mean_line(lines: Sequence[Line]) -> Line:
    """Return the mean at each x over the lines that have it."""
    values: dict[float, list[float]] = {}
    for x, y in (point for line in lines for point in line):
        values.setdefault(x, []).append(y)
    return [(x, sum(values[x]) / len(values[x])) for x in sorted(values)]


def _points(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> Line:
    return [(row[x], row[y]) for row in rows if row.get(y) is not None and math.isfinite(row[y])]
