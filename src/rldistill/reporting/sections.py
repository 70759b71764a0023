"""The tables below the first one: more statistics, fidelity, robustness, sample efficiency."""

from __future__ import annotations

from typing import Any

from rldistill.reporting.charts import number_text
from rldistill.reporting.tables import NONE, Entry, TableCell, interval_text, optional_text, percent_text

STATES = {"teacher_states": "the teacher's states", "own_states": "its own states"}


def statistics_rows(evaluation: dict[str, Any]) -> list[list[TableCell]]:
    """One list of cells for each policy; none if the evaluation is of before there was such a thing."""
    policies = evaluation["policies"]
    if not all("median" in entry and "optimality_gap" in entry for entry in policies.values()):
        return []
    told = any(entry.get("success_rate") is not None for entry in policies.values())
    return [_statistics(name, entry, told) for name, entry in policies.items()]


def _statistics(name: str, entry: Entry, told: bool) -> list[TableCell]:
    better = entry.get("probability_of_improvement") or {"estimate": None, "ci95": None}
    cells = [
        TableCell("policy", name),
        _kept(entry.get("non_inferior")),
        TableCell("median", number_text(entry["median"]), interval_text(entry.get("median_ci95"), number_text)),
        TableCell("IQM", number_text(entry["iqm"]), interval_text(entry.get("iqm_ci95"), number_text)),
        TableCell(
            "optimality gap",
            optional_text(entry["optimality_gap"], "{:.3f}"),
            interval_text(entry.get("optimality_gap_ci95"), "{:.3f}".format),
        ),
        TableCell(
            "P(improvement)",
            optional_text(better["estimate"], "{:.0%}"),
            interval_text(better["ci95"], "{:.0%}".format),
        ),
    ]
    return [*cells, TableCell("success", optional_text(entry.get("success_rate"), "{:.0%}"))] if told else cells


def _kept(answer: Entry | None) -> TableCell:
    column = "kept"
    if answer is None:
        return TableCell(column, NONE)
    share = percent_text(1 - answer["margin"])
    bounds = [answer["lower"], answer["upper"]]
    note = "" if None in bounds else f"{number_text(bounds[0])} to {number_text(bounds[1])}"
    return TableCell(column, f"{share}: {answer['decision']}", note)


def fidelity_rows(evaluation: dict[str, Any]) -> list[list[TableCell]]:
    """Two lists of cells for each student: on the teacher's states and on its own."""
    rows = []
    for name, entry in evaluation["policies"].items():
        found = entry.get("fidelity") or {}
        rows += [_fidelity(name, where, found[key]) for key, where in STATES.items() if found.get(key)]
    shown = [column for column in zip(*rows, strict=True) if any(cell.text != NONE for cell in column)]
    return [list(row) for row in zip(*shown, strict=True)]


def _fidelity(name: str, where: str, found: Entry) -> list[TableCell]:
    random = found.get("random_regret")
    return [
        TableCell("student", name, where),
        TableCell("states", f"{found['states']:,}"),
        TableCell("agreement", optional_text(found["agreement"], "{:.1%}")),
        TableCell("action RMSE", optional_text(found["action_rmse"], "{:.3g}")),
        TableCell("KL", optional_text(found["kl"], "{:.3g}")),
        TableCell("value RMSE", optional_text(found["value_rmse"], "{:.3g}")),
        TableCell("regret", optional_text(found["regret"], "{:.3g}"), f"random {random:.3g}" if random else ""),
    ]


def regret_unit(evaluation: dict[str, Any]) -> str:
    """What regret is measured in; empty where there is none."""
    units = [(entry.get("fidelity") or {}).get("regret_unit") for entry in evaluation["policies"].values()]
    unit = str(next(filter(None, units), ""))
    return "units of the return" if unit == "return" else unit


def robustness_rows(evaluation: dict[str, Any]) -> list[list[TableCell]]:
    """One list of cells for each perturbation: what each policy has left, and what it lost."""
    found = evaluation.get("robustness") or {"perturbations": {}}
    names = [name for name, entry in evaluation["policies"].items() if entry["kind"] != "random"]
    return [
        [
            TableCell("perturbation", perturbation),
            *(TableCell(who, number_text(row[who]["mean"]), f"lost {number_text(row[who]['lost'])}") for who in names),
        ]
        for perturbation, row in found["perturbations"].items()
    ]


def efficiency_rows(evaluation: dict[str, Any]) -> list[list[TableCell]]:
    """One list of cells for each policy: environment steps to each share of the teacher's lead."""
    found = evaluation.get("efficiency") or {}
    shares = dict.fromkeys(share for said in found.values() for share in said["to"])
    return [
        [
            TableCell("policy", name),
            *(TableCell(f"to {share}%", optional_text(said["to"].get(share), "{:,}", "never")) for share in shares),
        ]
        for name, said in found.items()
    ]
