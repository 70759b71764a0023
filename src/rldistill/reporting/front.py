"""Size against score: what a run compared, and what a search beside it tried."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import read_json
from rldistill.reporting.charts import palette, scatter_chart
from rldistill.reporting.search import front_chart, search_verdict

DEFAULT_MARGIN = 0.05
"""What may be lost, of an evaluation that does not say."""


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of (size, score) of which no other that is as small has as high a score, from the smallest on."""
    best, kept = float("-inf"), []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best:
            best = points[name][1]
            kept.append(name)
    return kept


def run_front(evaluation: dict[str, Any]) -> Markup | None:
    """All policies of a run with parameters and a normalised score; None where that is fewer than two."""
    policies = evaluation["policies"]
    points = {
        name: (entry["parameters"], entry["normalised"])
        for name, entry in policies.items()
        if entry["parameters"] and entry["normalised"] is not None
    }
    if len(points) < 2:
        return None
    answers = [answer for entry in policies.values() if (answer := entry.get("non_inferior"))]
    margin = answers[0]["margin"] if answers else DEFAULT_MARGIN
    return scatter_chart(
        points, pareto_front(points), "parameters", "normalised score", 1 - margin, palette(evaluation)
    )


def search_front(run: Path) -> tuple[Markup, str] | None:
    """The front of the search in `search/` and its answer; None if there was no search.

    Raises:
        CorruptArtifactError: what it left is broken.
    """
    path = run / "search" / "search.json"
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        return front_chart(found), search_verdict(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(f"{path}: not as `rldistill search` writes it ({error!r})") from None
