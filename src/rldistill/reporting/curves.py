"""What the report draws as lines: learning, sample efficiency, performance profiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rldistill.io.jsonl import read_jsonl
from rldistill.reporting.charts import Line, Series, bulk, lines_chart, palette

Titled = tuple[str, Markup]
CONTROL = "-scratch"
"""What the name of a student that learned from reward alone ends with."""
FROM_DATA = (
    ("heldout_loss", "Students: loss on held-out episodes"),
    ("agreement", "Students: agreement with the teacher on held-out episodes"),
)
FROM_REWARD = (
    ("return", "Students: return of the episodes they learn from"),
    ("score", "Students: return of the episodes they are tested on"),
)


def learning_charts(run: Path, evaluation: dict[str, Any]) -> Iterator[Titled]:
    """The teacher's curve, and those of the students, whatever they learned from.

    Raises:
        CorruptArtifactError: a curve is torn.
    """
    paint = palette(evaluation)
    curve = _points(read_jsonl(run / "teacher" / "curve.jsonl"), "step", "mean")
    if curve:
        title = "Teacher: mean return while it was trained"
        yield title, lines_chart({"teacher": curve}, "environment steps", title, paint={"teacher": "teacher"})
    folders = {name: place for name in paint if (place := _folder(run, name)).is_dir()}
    for key, title in FROM_DATA:
        yield from _students(title, "epochs", {name: epoch_lines(at, key) for name, at in folders.items()}, paint)
    for key, title in FROM_REWARD:
        yield from _students(
            title, "environment steps", {name: step_lines(at, key) for name, at in folders.items()}, paint
        )


def efficiency_charts(evaluation: dict[str, Any]) -> Iterator[Titled]:
    """Normalised score against environment steps, the teacher's data included; nothing where it was not measured."""
    found = evaluation.get("efficiency") or {}
    curves: Series = {name: [(x, y) for x, y in said["curve"]] for name, said in found.items() if said["curve"]}
    # Where all were measured at one and the same place, the table says it better.
    if len({x for curve in curves.values() for x, _ in curve}) > 1:
        title = "Normalised score against environment steps"
        yield title, lines_chart(curves, "environment steps", title, paint=palette(evaluation))


def profiles_chart(evaluation: dict[str, Any]) -> Markup | None:
    """The share of episodes that return more than what is across; None of an evaluation without profiles."""
    at = evaluation.get("profile_at")
    found = {name: entry["profile"] for name, entry in evaluation["policies"].items() if entry.get("profile")}
    if not at or not found or at[0] == at[-1]:
        return None
    everything = [x for entry in evaluation["policies"].values() for run in entry["runs"] for x in run["returns"]]
    return lines_chart(
        {name: list(zip(at, profile["share"], strict=True)) for name, profile in found.items()},
        "return",
        "share of episodes that return more",
        paint=palette(evaluation),
        bands={name: list(zip(at, said["low"], said["high"], strict=True)) for name, said in found.items()},
        within=bulk(everything),
    )


def epoch_lines(student: Path, key: str) -> list[Line]:
    """One line for each training seed; the rounds of DAgger stand one after the other."""
    lines = []
    for seed in sorted(student.glob("seed-*")):
        rounds = sorted(seed.glob("round-*"), key=lambda folder: int(folder.name.removeprefix("round-")))
        rows = [row for folder in (*rounds, seed) for row in read_jsonl(folder / "metrics.jsonl")]
        epochs = [row for row in rows if "epoch" in row]
        line = _points([{**row, "epoch": number} for number, row in enumerate(epochs, 1)], "epoch", key)
        lines += [line] if line else []
    return lines


def step_lines(student: Path, key: str) -> list[Line]:
    """One line for each training seed that learned from reward."""
    found = [
        _points([row for row in read_jsonl(seed / "metrics.jsonl") if "epoch" not in row], "step", key)
        for seed in sorted(student.glob("seed-*"))
    ]
    return [line for line in found if line]


def _students(title: str, across: str, seeds: dict[str, list[Line]], paint: dict[str, str]) -> Iterator[Titled]:
    seeds = {name: lines for name, lines in seeds.items() if lines}
    if seeds:
        means: Series = {name: _mean_line(lines) for name, lines in seeds.items()}
        faint = {name: lines for name, lines in seeds.items() if len(lines) > 1}
        yield title, lines_chart(means, across, title, faint, paint)


def _folder(run: Path, name: str) -> Path:
    own = run / "students" / name
    return own if own.is_dir() else run / "controls" / name.removesuffix(CONTROL)


def _mean_line(lines: list[Line]) -> Line:
    """The mean over the seeds that got so far."""
    ys: dict[float, list[float]] = {}
    for x, y in (point for line in lines for point in line):
        ys.setdefault(x, []).append(y)
    return [(x, sum(ys[x]) / len(ys[x])) for x in sorted(ys)]


def _points(table: list[dict[str, Any]], x: str, y: str) -> Line:
    return [(row[x], row[y]) for row in table if row.get(y) is not None and math.isfinite(row[y])]
