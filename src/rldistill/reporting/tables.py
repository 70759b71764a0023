"""Tables of the report below the first one: statistics, fidelity and sample efficiency."""

from __future__ import annotations

from rldistill.evaluation.non_inferiority import NonInferiorityResult
from rldistill.evaluation.records import PolicyResult, StateMetrics
from rldistill.evaluation.results import Evaluation, policy_rows
from rldistill.evaluation.tables import NONE, Rows, TableCell, figure, interval_text, percent_text

HIGHLIGHTS = ("normalized", "agreement", "action RMSE", "parameters", "latency", "env steps")


def highlights(evaluation: Evaluation) -> list[TableCell]:
    """Return the figures of the best student under the verdict."""
    best = evaluation.best_student
    rows = [row for row in policy_rows(evaluation) if best is not None and row[0].text == best[0]]
    return [cell for row in rows for cell in row if cell.column in HIGHLIGHTS]


def statistics_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each policy; the success rate only if the environment reports it."""
    rows = [_statistics(name, entry) for name, entry in evaluation.policies.items()]
    reported = any(entry.success_rate is not None for entry in evaluation.policies.values())
    return rows if reported else [row[:-1] for row in rows]


def _statistics(name: str, entry: PolicyResult) -> list[TableCell]:
    better = entry.probability_of_improvement
    return [
        TableCell("policy", name),
        _decision(entry.non_inferiority),
        figure("median", entry.median, ci95=entry.median_ci95),
        figure("IQM", entry.iqm, ci95=entry.iqm_ci95),
        figure("optimality gap", entry.optimality_gap, ".3f", entry.optimality_gap_ci95),
        figure("P(improvement)", better.estimate, ".0%", better.ci95) if better else TableCell("P(improvement)", NONE),
        figure("success", entry.success_rate, ".0%"),
    ]


def _decision(test: NonInferiorityResult | None) -> TableCell:
    if test is None:
        return TableCell("kept", NONE)
    bounds = None if test.lower is None or test.upper is None else (test.lower, test.upper)
    return TableCell("kept", f"{percent_text(1 - test.margin)}: {test.decision}", interval_text(bounds))


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
        figure("states", metrics.states, ","),
        figure("agreement", metrics.agreement, ".1%"),
        figure("action RMSE", metrics.action_rmse, ".3g"),
        figure("KL", metrics.kl, ".3g"),
        figure("value RMSE", metrics.value_rmse, ".3g"),
        figure(
            "regret", metrics.regret, ".3g", note=f"random {metrics.random_regret:.3g}" if metrics.random_regret else ""
        ),
    ]


def unit_text(unit: str | None) -> str:
    """Return a unit of regret as text."""
    return "units of the return" if unit == "return" else unit or ""


def regret_unit(evaluation: Evaluation) -> str:
    """Return the unit of regret; empty without regret."""
    units = [entry.fidelity.regret_unit for entry in evaluation.students.values() if entry.fidelity]
    return unit_text(next(filter(None, units), None))


def efficiency_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each policy: environment steps to each percentage of the teacher's lead."""
    return [
        [
            TableCell("policy", name),
            *(
                TableCell(f"to {share}%", "never" if steps is None else f"{steps:,}")
                for share, steps in reached.to.items()
            ),
        ]
        for name, reached in evaluation.efficiency.items()
    ]
