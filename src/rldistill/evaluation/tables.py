"""Results that are stored as JSON and print as tables, and the cells of these tables."""

import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rldistill.core.errors import printable
from rldistill.evaluation.statistics import Estimate
from rldistill.io.atomic import Document

NONE = "–"
"""Text of a missing figure."""


class Record(Document):
    """Part of a result."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return self.model_dump(mode="json")


class Result(Record):
    """Result that prints as tables and lines of text."""

    def blocks(self) -> Sequence[Table | str]:
        """Return the tables and lines in order."""
        raise NotImplementedError

    def __rich__(self) -> Group:

        return Group(*(Text(printable(block)) if isinstance(block, str) else block for block in self.blocks()))

    def __str__(self) -> str:

        console = Console(file=io.StringIO(), width=shutil.get_terminal_size((120, 24)).columns, record=True)
        console.print(self)
        return "\n".join(line.rstrip() for line in console.export_text().splitlines())

    __repr__ = __str__


@dataclass(frozen=True)
class TableCell:
    """Figure in a column, with a note under it."""

    column: str
    text: str
    note: str = ""


Rows = list[list[TableCell]]


def figure(column: str, value: float | Estimate | None, spec: str = "", note: str = "") -> TableCell:
    """Return the cell of a number, with the 95% interval of an estimate as the note."""
    if isinstance(value, Estimate):
        return TableCell(column, number_text(value.value, spec), interval_text(value.ci95, spec) or note)
    return TableCell(column, number_text(value, spec), note)


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
    table = Table(
        title=Text(printable(title)) if title else None, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for number, cell in enumerate(rows[0]):
        width = min(len(cell.column), 16)
        table.add_column(
            Text(printable(cell.column)),
            justify="right" if number and not left else "left",
            min_width=width,
            overflow="fold",
        )
    for row in rows:
        texts = [(printable(cell.text), printable(f"\n{cell.note}" * bool(cell.note))) for cell in row]
        table.add_row(*(Text.assemble(text, (note, "dim")) for text, note in texts))
    return table
