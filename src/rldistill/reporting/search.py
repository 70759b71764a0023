"""A search for people: what was tried, the front of size and score, and the smallest student that holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from markupsafe import Markup

from rldistill.io.atomic import write_atomic
from rldistill.reporting.charts import scatter_chart, templates
from rldistill.reporting.tables import NONE, TableCell

if TYPE_CHECKING:
    from rich.table import Table


def search_verdict(found: dict[str, Any]) -> str:
    """The answer in a sentence."""
    kept, by = f"{1 - found['margin']:.0%} of the teacher's lead over random play", found["by"]
    if found["winner"] is None:
        return f"No student that was tried is known to keep {kept}: more steps, or larger students, may."
    (trial,) = [trial for trial in found["tried"] if trial["name"] == found["winner"]]
    own, its = trial["size"][by], found["teacher"][by]
    share = f", a {its / own:,.0f}th of its teacher's" if own and its and its >= 2 * own else ""
    episodes = f"{trial['test']['episodes']} episodes, {len(trial['test']['seeds'])} training seeds"
    return f"The smallest student that keeps {kept} is {trial['name']}: {own:,.0f} {by}{share} ({episodes})."


def as_students(found: dict[str, Any]) -> str:
    """The winner as a run file has it."""
    (trial,) = [trial for trial in found["tried"] if trial["name"] == found["winner"]]
    return yaml.safe_dump(
        {"students": {trial["name"]: trial["student"]}}, default_flow_style=None, sort_keys=False
    ).strip()


def search_rows(found: dict[str, Any]) -> list[list[TableCell]]:
    """One list of cells for each student, the smallest first."""

    def size(trial: dict[str, Any]) -> float:
        own = trial["size"].get(found["by"])
        return float("inf") if own is None else own

    return [_cells(trial, found) for trial in sorted(found["tried"], key=size)]


def _cells(trial: dict[str, Any], found: dict[str, Any]) -> list[TableCell]:
    own, test, last = trial["size"].get(found["by"]), trial["test"], trial["rungs"][-1]
    said = test or last
    interval = "{:.2f} to {:.2f}".format(*said["ci95"]) if said["ci95"] else ""
    return [
        TableCell("student", trial["name"]),
        TableCell(found["by"], NONE if own is None else f"{own:,.0f}"),
        TableCell("normalised", NONE if said["normalised"] is None else f"{said['normalised']:.3f}", interval),
        TableCell("front", "yes" if trial["name"] in found["front"] else ""),
        TableCell("episodes", f"{test['episodes'] if test else last['episodes']}"),
        TableCell("keeps it", test["decision"] if test else "failed" if "failed" in last else NONE),
    ]


def search_table(found: dict[str, Any]) -> Table:
    """The same for a terminal."""
    from rich import box
    from rich.table import Table

    rows = search_rows(found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for cell in rows[0]:
        table.add_column(cell.column, justify="left" if cell.column == "student" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell.text + (f" ({cell.note})" if cell.note else "") for cell in row))
    return table


def front_chart(found: dict[str, Any]) -> Markup:
    """Size and score of all that were tried."""
    points = {
        trial["name"]: (trial["size"][found["by"]], (trial["test"] or trial["rungs"][-1])["normalised"])
        for trial in found["tried"]
        if trial["size"].get(found["by"]) and (trial["test"] or trial["rungs"][-1])["normalised"] is not None
    }
    return scatter_chart(points, found["front"], found["by"], "normalised score", 1 - found["margin"])


def write_search(found: dict[str, Any], path: Path) -> None:
    """Write what `search` found as one HTML file that opens offline."""
    page = (
        templates()
        .get_template("search.html.jinja")
        .render(
            found=found,
            verdict=search_verdict(found),
            rows=search_rows(found),
            chart=front_chart(found),
            written=as_students(found) if found["winner"] else "",
        )
    )
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
