"""Charts of size against score, of a run and of the search beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from rldistill.core.errors import CorruptArtifactError
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.results import Evaluation
from rldistill.io.atomic import read_json
from rldistill.reporting.charts import palette, scatter_chart
from rldistill.reporting.search_page import front_chart, search_verdict


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points (size, score) with a higher score than all smaller ones, in order of size."""
    best, front = float("-inf"), []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best:
            best = points[name][1]
            front.append(name)
    return front


def run_front(evaluation: Evaluation) -> Markup | None:
    """Return the chart of all policies with parameters and a normalized score; None if there are fewer than two."""
    points = {
        name: (float(entry.parameters), entry.normalized)
        for name, entry in evaluation.policies.items()
        if entry.parameters and entry.normalized is not None
    }
    if len(points) < 2:
        return None
    margins = [entry.non_inferiority.margin for entry in evaluation.students.values() if entry.non_inferiority]
    wanted = 1 - next(iter(margins), EvaluateConfig.margin)
    front = pareto_front(points)
    return scatter_chart(points, front, "parameters", "normalized score", wanted, palette(evaluation.policies))


def search_front(run: Path) -> tuple[Markup, str] | None:
    """Return the chart and the verdict of the search in `search/`; None without a search.

    Raises:
        CorruptArtifactError: `search.json` is broken.
    """
    path = run / "search" / "search.json"
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        return front_chart(found), search_verdict(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(
            f"{path}: the file is incomplete ({error!r}). Run `rldistill search` again."
        ) from None
