"""`report.html`: one file that opens offline, from what the stages left in a run's folder."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rldistill.artifacts import read_json, write_atomic
from rldistill.errors import CorruptArtifactError
from rldistill.report.charts import Line, Series, lines_chart, number_text, palette, returns_chart, templates
from rldistill.report.table import highlights, rows, verdict

VIDEO_BYTES = 7_000_000
"""What base64 makes of it leaves room for the rest within 10 MB."""

EVALUATION_KEYS = ("env", "env_kwargs", "episodes", "seeds", "versions", "policies")
POLICY_KEYS = (
    *(
        "kind",
        "runs",
        "distinct_episodes",
        "mean",
        "iqm",
        "ci95",
        "normalised",
        "normalised_ci95",
        "discounted_mean",
        "agreement",
    ),
    *("action_rmse", "parameters", "bytes", "macs", "latency_us", "env_steps"),
)


@dataclass(frozen=True)
class Video:
    """One filmed episode."""

    policy: str
    label: str
    result: str
    url: str


def write_report(run: Path) -> Path:
    """Write the report of the run in folder `run`; returns its path.

    Raises:
        CorruptArtifactError: `evaluation.json` is missing, or it or a learning curve is broken.
    """
    evaluation = read_evaluation(run / "evaluation.json")
    videos, left_out = _videos(run / "videos", evaluation)
    page = (
        templates()
        .get_template("report.html.jinja")
        .render(
            evaluation=evaluation,
            verdict=verdict(evaluation),
            highlights=highlights(evaluation),
            rows=rows(evaluation),
            returns=returns_chart(evaluation),
            charts=list(_learning_charts(run, palette(evaluation))),
            videos=videos,
            left_out=left_out,
            config=_text(run / "config.yaml"),
            provenance=_text(run / "provenance.json"),
        )
    )
    path = run / "report.html"
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def read_evaluation(path: Path) -> dict[str, Any]:
    """An `evaluation.json`, whole; raises CorruptArtifactError for one that is missing or lacks something."""
    if not path.exists():
        raise CorruptArtifactError(f"{path}: there is nothing to report yet; run `rldistill evaluate` first")
    evaluation = read_json(path)
    _require(path, "it", evaluation, EVALUATION_KEYS)
    _require(path, "policies", evaluation["policies"], ())
    for name, entry in evaluation["policies"].items():
        _require(path, f"policies.{name}", entry, POLICY_KEYS)
    if "teacher" not in [entry["kind"] for entry in evaluation["policies"].values()]:
        raise CorruptArtifactError(f"{path}: no policy in it is a teacher; run `rldistill evaluate` again")
    return dict(evaluation)


def _require(path: Path, where: str, value: object, keys: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise CorruptArtifactError(f"{path}: {where} should be an object; run `rldistill evaluate` again")
    missing = [key for key in keys if key not in value]
    if missing:
        raise CorruptArtifactError(f"{path}: {where} lacks {', '.join(missing)}; run `rldistill evaluate` again")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _learning_charts(run: Path, paint: dict[str, str]) -> Iterator[tuple[str, Markup]]:
    curve = _points(_rows(run / "teacher" / "curve.jsonl"), "step", "mean")
    if curve:
        title = "Teacher: mean return while it was trained"
        yield title, lines_chart({"teacher": curve}, "environment steps", title, paint={"teacher": "teacher"})
    for key, title in (
        ("heldout_loss", "Students: loss on held-out episodes"),
        ("agreement", "Students: agreement with the teacher on held-out episodes"),
    ):
        seeds = {name: _seed_lines(run / "students" / name, key) for name in paint}
        seeds = {name: lines for name, lines in seeds.items() if lines}
        if seeds:
            means: Series = {name: _mean_line(lines) for name, lines in seeds.items()}
            faint = {name: lines for name, lines in seeds.items() if len(lines) > 1}
            yield title, lines_chart(means, "epochs", title, faint, paint)


def _seed_lines(student: Path, key: str) -> list[Line]:
    """One line for each training seed; the rounds of DAgger stand one after the other."""
    lines = []
    for seed in sorted(student.glob("seed-*")):
        rounds = sorted(seed.glob("round-*"), key=lambda folder: int(folder.name.removeprefix("round-")))
        epochs = [row for folder in (*rounds, seed) for row in _rows(folder / "metrics.jsonl")]
        line = _points([{**row, "epoch": number} for number, row in enumerate(epochs, 1)], "epoch", key)
        lines += [line] if line else []
    return lines


def _mean_line(lines: list[Line]) -> Line:
    """The mean over the seeds that got so far."""
    ys: dict[float, list[float]] = {}
    for x, y in (point for line in lines for point in line):
        ys.setdefault(x, []).append(y)
    return [(x, sum(ys[x]) / len(ys[x])) for x in sorted(ys)]


def _points(table: list[dict[str, Any]], x: str, y: str) -> Line:
    return [(row[x], row[y]) for row in table if row.get(y) is not None and math.isfinite(row[y])]


def _rows(path: Path) -> list[dict[str, Any]]:
    table = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        try:
            table.append(dict(json.loads(line)))
        except (json.JSONDecodeError, TypeError, ValueError):
            raise CorruptArtifactError(f"{path}, line {number}: not a JSON object; was it cut short?") from None
    return table


def _videos(folder: Path, evaluation: dict[str, Any]) -> tuple[list[Video], int]:
    """Best episodes first, as many as fit, then in the order of the policies; and how many did not fit."""
    room, left_out = VIDEO_BYTES, 0
    chosen: dict[tuple[str, str], Video] = {}
    policies = evaluation["policies"]
    for label, pick in (("best", max), ("worst", min)):
        for name, entry in policies.items():
            path = folder / f"{name}-{label}.mp4"
            if not path.exists():
                continue
            data = path.read_bytes()
            if len(data) > room:
                left_out += 1
                continue
            room -= len(data)
            url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
            # the first training seed's episodes are the ones that are filmed
            chosen[name, label] = Video(name, label, number_text(pick(entry["runs"][0]["returns"])), url)
    order = [(name, label) for name in policies for label in ("best", "worst")]
    return [chosen[key] for key in order if key in chosen], left_out
