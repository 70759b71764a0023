"""What a person reads first: one sentence, a few figures, one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rldistill.reporting.charts import number_text

if TYPE_CHECKING:
    from rich.table import Table

Entry = dict[str, Any]
NONE = "–"


@dataclass(frozen=True)
class TableCell:
    """A figure under its column's title, and what qualifies it."""

    column: str
    text: str
    note: str = ""


def verdict(evaluation: dict[str, Any]) -> str:
    """One honest sentence on the best student."""
    teacher, best = teacher_of(evaluation), best_student(evaluation)
    if best is None:
        return "No student was evaluated."
    if teacher["normalised"] is None:
        return "The teacher is no better than random play, so there was nothing to distil: choose another teacher."
    name, student = best
    if student["normalised_ci95"] is None:
        return "The teacher is not clearly better than random play, so there is no telling what was kept of it."
    low, high = student["normalised_ci95"]
    score = f"normalised score {student['normalised']:.3f}, 95% interval {low:.3f} to {high:.3f}"
    steps = f"from {student['env_steps']:,} environment steps"
    if low <= 0:
        return (
            f"Nothing was learned: the best student, {name}, is not clearly better than random play ({score}), {steps}."
        )
    reached = f"{student['normalised']:.1%}"
    size = _size_clause(student["parameters"], teacher["parameters"])
    answer = student.get("non_inferior")
    if answer is None:
        return f"The student {name} reaches {reached} of its teacher's lead over random play ({score}) {steps}{size}."
    return f"{_kept(name, answer)}: it reaches {reached} ({score}) {steps}{size}{_more_clause(answer)}."


def _kept(name: str, answer: Entry) -> str:
    lead = f"{percent_text(1 - answer['margin'])} of its teacher's lead over random play"
    if answer["decision"] == "undecided":
        return f"Whether the student {name} keeps {lead} is undecided"
    return f"The student {name} {'keeps' if answer['decision'] == 'yes' else 'does not keep'} {lead}"


def percent_text(share: float) -> str:
    """A share as a percentage, with as many digits as it has."""
    return f"{100 * share:.4g}%"


def _more_clause(answer: Entry) -> str:
    if answer["decision"] != "undecided":
        return ""
    more = answer["episodes_needed"]
    return f"; run {more:,} more episodes" if more else "; more episodes would not tell"


def _size_clause(student: int | None, teacher: int | None) -> str:
    if not (student and teacher):
        return ""
    if student > teacher:
        return f", but is larger than its teacher: {student:,} parameters against {teacher:,}"
    return (
        f", and is {teacher / student:.1f} times smaller than its teacher"
        if student < teacher
        else ", at its teacher's size"
    )


def teacher_of(evaluation: dict[str, Any]) -> Entry:
    """What the evaluation says of the teacher."""
    entry: Entry = next(entry for entry in evaluation["policies"].values() if entry["kind"] == "teacher")
    return entry


def best_student(evaluation: dict[str, Any]) -> tuple[str, Entry] | None:
    """Name and figures of the student with the highest mean return; None without students."""
    students = [(name, entry) for name, entry in evaluation["policies"].items() if entry["kind"] == "student"]
    return max(students, key=lambda item: item[1]["mean"], default=None)


def highlights(evaluation: dict[str, Any]) -> list[TableCell]:
    """The figures of the best student that stand under the verdict."""
    best = best_student(evaluation)
    if best is None:
        return []
    kept = ("normalised", "agreement", "parameters", "latency", "env steps")
    return [cell for cell in _cells(*best, teacher_of(evaluation)) if cell.column in kept]


def rows(evaluation: dict[str, Any]) -> list[list[TableCell]]:
    """The table: one list of cells for each policy, under the same columns."""
    teacher = teacher_of(evaluation)
    return [_cells(name, entry, teacher) for name, entry in evaluation["policies"].items()]


def evaluation_table(evaluation: dict[str, Any]) -> Table:
    """The comparison for a terminal of 80 columns or more."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(f"{evaluation['env']}, {evaluation['episodes']} episodes"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    noted = ("mean return", "normalised", "parameters")
    left_out = ("IQM", "discounted", "multiply-adds")
    lines = [[cell for cell in row if cell.column not in left_out] for row in rows(evaluation)]
    for number, cell in enumerate(lines[0]):
        table.add_column(cell.column, justify="left" if number == 0 else "right", min_width=len(cell.column))
    for row in lines:
        notes = [f"\n{cell.note}" if cell.note and cell.column in noted else "" for cell in row]
        table.add_row(*(Text.assemble(cell.text, (note, "dim")) for cell, note in zip(row, notes, strict=True)))
    return table


def robustness_table(evaluation: dict[str, Any]) -> Table | None:
    """What each policy has left under each perturbation, and what it lost; None if none was tried."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = evaluation.get("robustness")
    if found is None:
        return None
    names = [name for name, entry in evaluation["policies"].items() if entry["kind"] != "random"]
    table = Table(
        title=Text(f"under perturbations, {found['episodes']} episodes"),
        caption=Text("\n".join(f"left out: {name}: {why}" for name, why in found["left_out"].items())),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("perturbation")
    for name in names:
        table.add_column(Text(name), justify="right")
    for name, row in found["perturbations"].items():
        lost = [f"\nlost {number_text(row[who]['lost'])}" for who in names]
        cells = zip(names, lost, strict=True)
        table.add_row(Text(name), *(Text.assemble(number_text(row[who]["mean"]), (note, "dim")) for who, note in cells))
    return table


def _cells(name: str, entry: Entry, teacher: Entry) -> list[TableCell]:
    seeds = f", {len(entry['runs'])} seeds" if len(entry["runs"]) > 1 else ""
    return [
        TableCell("policy", name, entry["kind"] + seeds if entry["kind"] + seeds != name else ""),
        TableCell("mean return", number_text(entry["mean"]), interval_text(entry["ci95"], number_text)),
        TableCell("IQM", number_text(entry["iqm"])),
        TableCell("discounted", number_text(entry["discounted_mean"])),
        TableCell(
            "normalised",
            optional_text(entry["normalised"], "{:.3f}"),
            interval_text(entry["normalised_ci95"], "{:.3f}".format),
        ),
        _agreement(entry),
        _parameters(entry, teacher),
        TableCell("multiply-adds", _large(entry["macs"]) if entry["macs"] else NONE),
        _latency(entry["latency_us"]),
        TableCell("env steps", f"{entry['env_steps']:,}" if entry["env_steps"] else NONE),
    ]


def _agreement(entry: Entry) -> TableCell:
    if entry["action_rmse"] is not None:
        return TableCell("agreement", f"{entry['action_rmse']:.3g}", "RMS error of actions")
    return TableCell("agreement", optional_text(entry["agreement"], "{:.1%}"))


def _parameters(entry: Entry, teacher: Entry) -> TableCell:
    own, its = entry["parameters"], teacher["parameters"]
    if not own:
        return TableCell("parameters", NONE)
    note = _bytes(entry["bytes"])
    if entry["kind"] == "student" and its:
        note = (
            "larger than the teacher"
            if own > its
            else f"{its / own:.1f} times smaller"
            if own < its
            else "the teacher's size"
        )
    return TableCell("parameters", f"{own:,}", note)


def _latency(latency: dict[str, float] | None) -> TableCell:
    if latency is None:
        return TableCell("latency", NONE)
    return TableCell("latency", f"{latency['p50']:,.0f} µs", f"p99 {latency['p99']:,.0f} µs")


def _large(count: int) -> str:
    return f"{count / 1e6:,.1f}M" if count >= 1e6 else f"{count:,}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def interval_text(ends: list[float] | None, form: Callable[[float], str]) -> str:
    """Both ends; nothing where there is no interval or it has no width."""
    return f"{form(ends[0])} to {form(ends[1])}" if ends and ends[0] < ends[1] else ""


def optional_text(value: float | None, form: str, none: str = NONE) -> str:
    """A figure in the form of `str.format`, or what stands for one that is not there."""
    return none if value is None else form.format(value)
