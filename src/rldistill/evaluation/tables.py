"""Tables of results, for terminals and pages."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

NONE = "–"
"""Text of a missing figure."""


@dataclass(frozen=True)
class TableCell:
    """Figure in a column, with a note under it."""

    column: str
    text: str
    note: str = ""


Rows = list[list[TableCell]]


class Printable:
    """Result that prints as tables; subclasses define `__rich__`."""

    def __rich__(self) -> RenderableType:
        raise NotImplementedError

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=shutil.get_terminal_size((120, 24)).columns, record=True)
        console.print(self)
        return "\n".join(line.rstrip() for line in console.export_text().splitlines())

    __repr__ = __str__


def rich_table(rows: Rows, title: str = "", notes: Collection[str] | None = None, left: bool = False) -> Table:
    """Return a table for a terminal, with the notes of the columns in `notes` (None: of all columns)."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, cell in enumerate(rows[0]):
        width = min(len(cell.column), 16)
        table.add_column(
            Text(cell.column), justify="right" if number and not left else "left", min_width=width, overflow="fold"
        )
    for row in rows:
        shown = [f"\n{cell.note}" if cell.note and (notes is None or cell.column in notes) else "" for cell in row]
        table.add_row(*(Text.assemble(cell.text, (note, "dim")) for cell, note in zip(row, shown, strict=True)))
    return table


def number_text(value: float) -> str:
    """Return a number as text, with two decimals if it is small."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:,.2f}"


def percent_text(share: float) -> str:
    """Return a share as a percentage of up to four digits."""
    return f"{100 * share:.4g}%"


def interval_text(ends: Sequence[float] | None, form: Callable[[float], str]) -> str:
    """Return both ends of an interval; empty without an interval, or if its width is 0."""
    return f"{form(ends[0])} to {form(ends[1])}" if ends and ends[0] < ends[1] else ""


def optional_text(value: float | None, form: str, none: str = NONE) -> str:
    """Return a number in the form of `str.format`, or `none`."""
    return none if value is None else form.format(value)
