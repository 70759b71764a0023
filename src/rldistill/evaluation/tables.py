"""Tables of results, for terminals and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

NONE = "–"
"""Text of a missing figure."""


@dataclass(frozen=True)
class TableCell:
    """Figure in a column, with a note under it."""

    column: str
    text: str
    note: str = ""


Rows = list[list[TableCell]]


def figure(
    column: str, value: float | None, spec: str = "", ci95: Sequence[float] | None = None, note: str = ""
) -> TableCell:
    """Return the cell of a number, with its 95% interval as the note, if there is one."""
    return TableCell(column, number_text(value, spec), interval_text(ci95, spec) or note)


def interval_text(ends: Sequence[float] | None, spec: str = "") -> str:
    """Return both ends of an interval; empty without an interval, or if its width is 0."""
    return f"{number_text(ends[0], spec)} to {number_text(ends[1], spec)}" if ends and ends[0] < ends[1] else ""


def number_text(value: float | None, spec: str = "") -> str:
    """Return a number in a format, by default with two decimals if it is small; NONE without a number."""
    if value is None:
        return NONE
    return format(value, spec or (",.0f" if abs(value) >= 1_000 else ",.2f"))


def percent_text(share: float) -> str:
    """Return a share as a percentage of up to four digits."""
    return f"{100 * share:.4g}%"


def rich_table(rows: Rows, title: str = "", left: bool = False) -> Table:
    """Return a table for a terminal, with the notes under the figures."""
    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, cell in enumerate(rows[0]):
        width = min(len(cell.column), 16)
        table.add_column(
            Text(cell.column), justify="right" if number and not left else "left", min_width=width, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text.assemble(cell.text, (f"\n{cell.note}" * bool(cell.note), "dim")) for cell in row))
    return table
