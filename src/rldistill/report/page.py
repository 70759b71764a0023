"""`report.html`: one file that opens offline, from what the stages left in a run's folder."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rldistill.artifacts import read_json, write_atomic
from rldistill.errors import CorruptArtifactError
from rldistill.report.charts import Series, lines_chart, returns_chart
from rldistill.report.table import COLUMNS, rows, verdict

VIDEO_BYTES = 7_000_000
"""What base64 makes of it leaves room for the rest within 10 MB."""


def write_report(run: Path) -> Path:
    """Write the report of the run in folder `run`; returns its path.

    Raises:
        CorruptArtifactError: `evaluation.json` is missing or broken.
    """
    if not (run / "evaluation.json").exists():
        raise CorruptArtifactError(
            f"{run / 'evaluation.json'}: there is nothing to report yet; run `rldistill evaluate`"
        )
    evaluation = read_json(run / "evaluation.json")
    page = _template().render(
        evaluation=evaluation,
        verdict=verdict(evaluation),
        columns=COLUMNS,
        rows=rows(evaluation),
        returns=Markup(returns_chart(evaluation)),
        charts=_learning_charts(run),
        videos=_videos(run / "videos"),
        config=_text(run / "config.yaml"),
        provenance=_text(run / "provenance.json"),
    )
    path = run / "report.html"
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("rldistill", "report")
    return jinja2.Environment(loader=loader, autoescape=True).get_template("report.html.jinja")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _learning_charts(run: Path) -> list[tuple[str, Markup]]:
    heldout: Series = {}
    agreement: Series = {}
    for metrics in sorted((run / "students").glob("*/seed-*/metrics.jsonl")):
        name = f"{metrics.parts[-3]}, {metrics.parts[-2]}"
        lines = _rows(metrics)
        heldout[name] = [(row["epoch"], row["heldout_loss"]) for row in lines]
        if lines and lines[0]["agreement"] is not None:
            agreement[name] = [(row["epoch"], row["agreement"]) for row in lines]
    curve = [(row["step"], row["mean"]) for row in _rows(run / "teacher" / "curve.jsonl")]
    wanted: list[tuple[str, Series, str]] = [
        ("Teacher: mean return while it was trained", {"teacher": curve} if curve else {}, "environment steps"),
        ("Students: loss on held-out episodes", heldout, "epochs"),
        ("Students: agreement with the teacher on held-out episodes", agreement, "epochs"),
    ]
    return [(title, Markup(lines_chart(series, across, title))) for title, series, across in wanted if series]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _videos(folder: Path) -> list[tuple[str, str]]:
    """Names and data URLs, the best episodes first, as many as fit."""
    files = sorted(folder.glob("*.mp4"), key=lambda path: (not path.stem.endswith("-best"), path.stem))
    videos, room = [], VIDEO_BYTES
    for path in files:
        data = path.read_bytes()
        if len(data) <= room:
            room -= len(data)
            url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
            videos.append((path.stem.replace("-", " "), url))
    return videos
