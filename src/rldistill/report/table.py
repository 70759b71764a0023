"""What a person reads first: one sentence, one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("policy", "mean return", "95% interval", "IQM", "normalised", "agreement", "parameters", "latency", "steps")


def verdict(evaluation: dict[str, Any]) -> str:
    """One honest sentence on the best student."""
    policies = evaluation["policies"]
    teacher = policies["teacher"]
    students = {name: entry for name, entry in policies.items() if entry["kind"] == "student"}
    if not students:
        return "No student was evaluated."
    if teacher["normalised"] is None:
        return "The teacher is no better than random play, so there is nothing to keep: choose another teacher."
    name, best = max(students.items(), key=lambda item: item[1]["normalised"])
    low, high = best["normalised_ci95"]
    text = (
        f"Student {name} keeps {best['normalised']:.1%} of its teacher's score over random play "
        f"(95% interval {low:.1%} to {high:.1%}) from {best['env_steps']:,} environment steps"
    )
    if teacher["parameters"] and best["parameters"]:
        ratio = teacher["parameters"] / best["parameters"]
        text += f", with {ratio:.1f} times fewer parameters" if ratio >= 1 else f", but is {1 / ratio:.1f} times larger"
    return text + "."


def rows(evaluation: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of the table, as text, in the order of COLUMNS."""
    out: list[tuple[str, ...]] = []
    teacher = evaluation["policies"]["teacher"]
    for name, entry in evaluation["policies"].items():
        low, high = entry["ci95"]
        larger = entry["kind"] == "student" and entry["parameters"] > teacher["parameters"]
        out.append(
            (
                name,
                f"{entry['mean']:,.2f}",
                f"{low:,.2f} to {high:,.2f}",
                f"{entry['iqm']:,.2f}",
                _optional(entry["normalised"], "{:.3f}"),
                _optional(entry["agreement"], "{:.1%}"),
                f"{entry['parameters']:,}" + (" (larger than the teacher)" if larger else ""),
                _optional(entry["latency_us"] and entry["latency_us"]["p50"], "{:,.0f} µs"),
                f"{entry['env_steps']:,}",
            )
        )
    return out


def _optional(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def evaluation_table(evaluation: dict[str, Any]) -> Table:
    """The comparison for a terminal."""
    from rich.table import Table

    table = Table(title=f"{evaluation['env']}, {evaluation['episodes']} episodes")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows(evaluation):
        table.add_row(*row)
    return table
