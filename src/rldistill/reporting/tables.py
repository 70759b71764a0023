"""Tables of the report below the first one: statistics, fidelity and sample efficiency."""

from __future__ import annotations

from rldistill.evaluation.non_inferiority import NonInferiorityResult
from rldistill.evaluation.records import PolicyResult, StateMetrics
from rldistill.evaluation.results import Evaluation, policy_rows
from rldistill.evaluation.tables import (
    NONE,
    Rows,
    TableCell,
    interval_text,
    number_text,
    optional_text,
    percent_text,
)

HIGHLIGHTS = ("normalized", "agreement", "action RMSE", "parameters", "latency", "env steps")


def highlights(evaluation: Evaluation) -> list[TableCell]:
    """Return the figures of the best student under the verdict."""
    if evaluation.best_student is None:
        return []
    name, _ = evaluation.best_student
    (row,) = (row for row in policy_rows(evaluation) if row[0].text == name)
    return [cell for cell in row if cell.column in HIGHLIGHTS]


def statistics_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each policy; the success rate only if the environment reports it."""
    rows = [_statistics(name, entry) for name, entry in evaluation.policies.items()]
    if any(entry.success_rate is not None for entry in evaluation.policies.values()):
        for row, entry in zip(rows, evaluation.policies.values(), strict=True):
            row.append(TableCell("success", optional_text(entry.success_rate, "{:.0%}")))
    return rows


def _statistics(name: str, entry: PolicyResult) -> list[TableCell]:
    better = entry.probability_of_improvement
    probability, probability_ci95 = (better.estimate, better.ci95) if better else (None, None)
    return [
        TableCell("policy", name),
        _decision(entry.non_inferiority),
        TableCell("median", number_text(entry.median), interval_text(entry.median_ci95, number_text)),
        TableCell("IQM", number_text(entry.iqm), interval_text(entry.iqm_ci95, number_text)),
        TableCell(
            "optimality gap",
            optional_text(entry.optimality_gap, "{:.3f}"),
            interval_text(entry.optimality_gap_ci95, "{:.3f}".format),
        ),
        TableCell(
            "P(improvement)",
            optional_text(probability, "{:.0%}"),
            interval_text(probability_ci95, "{:.0%}".format),
        ),
    ]


def _decision(answer: NonInferiorityResult | None) -> TableCell:
    if answer is None:
        return TableCell("kept", NONE)
    bounds = None if answer.lower is None or answer.upper is None else (answer.lower, answer.upper)
    return TableCell(
        "kept", f"{percent_text(1 - answer.margin)}: {answer.decision}", interval_text(bounds, number_text)
    )


def fidelity_rows(evaluation: Evaluation) -> Rows:
    """Return two lists of cells for each student, without the columns that no student has."""
    rows = []
    for name, entry in evaluation.students.items():
        if entry.fidelity is not None:
            if entry.fidelity.teacher_states is not None:
                rows.append(_fidelity(name, "the teacher's states", entry.fidelity.teacher_states))
            rows.append(_fidelity(name, "its own states", entry.fidelity.own_states))
    columns = [column for column in zip(*rows, strict=True) if any(cell.text != NONE for cell in column)]
    return [list(row) for row in zip(*columns, strict=True)]


def _fidelity(name: str, states: str, metrics: StateMetrics) -> list[TableCell]:
    return [
        TableCell("student", name, states),
        TableCell("states", f"{metrics.states:,}"),
        TableCell("agreement", optional_text(metrics.agreement, "{:.1%}")),
        TableCell("action RMSE", optional_text(metrics.action_rmse, "{:.3g}")),
        TableCell("KL", optional_text(metrics.kl, "{:.3g}")),
        TableCell("value RMSE", optional_text(metrics.value_rmse, "{:.3g}")),
        TableCell(
            "regret",
            optional_text(metrics.regret, "{:.3g}"),
            optional_text(metrics.random_regret or None, "random {:.3g}", ""),
        ),
    ]


def unit_text(unit: str | None) -> str:
    """Return a unit of regret as text."""
    return "units of the return" if unit == "return" else unit or ""


def regret_unit(evaluation: Evaluation) -> str:
    """Return the unit of regret; empty without regret."""
    found = [entry.fidelity.regret_unit for entry in evaluation.students.values() if entry.fidelity]
    return unit_text(next(filter(None, found), None))


def efficiency_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each policy: environment steps to each percentage of the teacher's lead."""
    return [
        [
            TableCell("policy", name),
            *(TableCell(f"to {share}%", optional_text(steps, "{:,}", "never")) for share, steps in found.to.items()),
        ]
        for name, found in evaluation.efficiency.items()
    ]
