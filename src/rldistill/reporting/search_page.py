"""Page and table of a search for the smallest student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from rich.table import Table

from rldistill.evaluation.non_inferiority import least_episodes
from rldistill.evaluation.tables import NONE, Rows, TableCell, figure, percent_text, rich_table
from rldistill.reporting.charts import scatter_chart, write_page


def search_verdict(found: dict[str, Any]) -> str:
    """Return the result of a search in one sentence."""
    lead, by = f"{percent_text(1 - found['margin'])} of the teacher's lead over random play", found["by"]
    if found["winner"] is None:
        tested = [trial["test"]["episodes"] for trial in found["tried"] if trial["test"]]
        least = least_episodes(found["margin"])
        if tested and max(tested) < least:
            return (
                f"No student is known to keep {lead}: {max(tested)} episodes are too few, at least {least} are needed."
            )
        return f"No student is known to keep {lead}. Collect more steps, or try larger students."
    (trial,) = [trial for trial in found["tried"] if trial["name"] == found["winner"]]
    size, teacher_size = trial["size"][by], found["teacher"][by] or 0
    share = f", a {teacher_size / size:,.0f}th of the teacher's" if size and teacher_size >= 2 * size else ""
    episodes = f"{trial['test']['episodes']} episodes, {len(trial['test']['seeds'])} training seeds"
    return f"The smallest student that keeps {lead} is {trial['name']}: {size:,.0f} {by}{share} ({episodes})."


def as_students(found: dict[str, Any]) -> str:
    """Return the winner as part of a run file."""
    (trial,) = [trial for trial in found["tried"] if trial["name"] == found["winner"]]
    students = {"students": {trial["name"]: trial["student"]}}
    return yaml.safe_dump(students, default_flow_style=None, sort_keys=False).strip()


def search_rows(found: dict[str, Any]) -> Rows:
    """Return a list of cells for each student, in order of size."""
    sizes = {trial["name"]: trial["size"].get(found["by"]) for trial in found["tried"]}
    ordered = sorted(found["tried"], key=lambda trial: (sizes[trial["name"]] is None, sizes[trial["name"]] or 0))
    return [_cells(trial, found) for trial in ordered]


def _cells(trial: dict[str, Any], found: dict[str, Any]) -> list[TableCell]:
    test, last = trial["test"], trial["rungs"][-1]
    result = test or last
    return [
        TableCell("student", trial["name"]),
        figure(found["by"], trial["size"].get(found["by"]), ",.0f"),
        figure("normalized", result["normalized"], ".3f", result["ci95"]),
        TableCell("front", "yes" if trial["name"] in found["front"] else ""),
        TableCell("episodes", f"{result['episodes']}"),
        TableCell("keeps it", test["decision"] if test else "failed" if "failed" in last else NONE),
    ]


def search_table(found: dict[str, Any]) -> Table:
    """Return the table of a search for a terminal."""
    return rich_table(search_rows(found))


def front_chart(found: dict[str, Any]) -> Markup:
    """Return the chart of size and score of all students."""
    points = {}
    for trial in found["tried"]:
        size, score = trial["size"].get(found["by"]), (trial["test"] or trial["rungs"][-1])["normalized"]
        if size and score is not None:
            points[trial["name"]] = (size, score)
    front = [name for name in found["front"] if name in points]
    return scatter_chart(points, front, found["by"], "normalized score", 1 - found["margin"])


def write_search(found: dict[str, Any], path: Path) -> None:
    """Write the result of a search as one HTML file that opens offline."""
    students = as_students(found) if found["winner"] else ""
    values = {"verdict": search_verdict(found), "rows": search_rows(found), "chart": front_chart(found)}
    write_page(path, "search.html.jinja", found=found, students=students, **values)
