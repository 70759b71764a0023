"""A comparison of teachers for people: a page, and a table in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rldistill.io.atomic import write_atomic
from rldistill.reporting.charts import number_text, returns_chart, templates
from rldistill.reporting.tables import NONE, TableCell

if TYPE_CHECKING:
    from rich.table import Table


def write_comparison(found: dict[str, Any], path: Path) -> None:
    """Write what `compare_teachers` found as one HTML file that opens offline."""
    policies = {name: {**row, "kind": "student", "runs": [row]} for name, row in found["teachers"].items()}
    page = (
        templates()
        .get_template("teachers.html.jinja")
        .render(
            found=found, rows=comparison_rows(found), returns=returns_chart({"policies": policies}), number=number_text
        )
    )
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def comparison_rows(found: dict[str, Any]) -> list[list[TableCell]]:
    """One list of cells for each teacher, under the same columns."""

    def digits(number: float | None) -> str:
        return NONE if number is None else f"{number:.3f}"

    def count(number: int | None) -> str:
        return NONE if number is None else f"{number:,}"

    rows = []
    for name, row in found["teachers"].items():
        low, high = map(number_text, row["ci95"])
        rows.append(
            [
                TableCell("teacher", name),
                TableCell("return", number_text(row["mean"]), f"{low} to {high}"),
                TableCell("teachability", digits(row["teachability"])),
                TableCell("entropy", digits(row["entropy"])),
                TableCell("action gap", digits(row["action_gap"])),
                TableCell("parameters", count(row["parameters"])),
                TableCell("MACs", count(row["macs"])),
                TableCell("latency", f"{row['latency_us']['p50']:.0f} us"),
            ]
        )
    return rows


def _short(names: list[str]) -> list[str]:
    """Paths without the folders that all of them are in."""
    folders = [name.split("/")[:-1] for name in names if "/" in name]
    alike = [len(set(level)) == 1 for level in zip(*folders, strict=False)] if len(folders) > 1 else []
    shared = "/".join(folders[0][: [*alike, False].index(False)]) + "/" if any(alike) else ""
    return [name.removeprefix(shared) for name in names]


def comparison_table(found: dict[str, Any]) -> Table:
    """The same for a terminal."""
    from rich.table import Column, Table

    rows = comparison_rows(found)
    table = Table(*(Column(cell.column, overflow="fold") for cell in rows[0]))
    for row, name in zip(rows, _short(list(found["teachers"])), strict=True):
        row[0] = TableCell("teacher", name)
        table.add_row(*(cell.text + (f" ({cell.note})" if cell.note else "") for cell in row))
    return table
