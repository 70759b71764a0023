"""Tables of the report below the first one: statistics, fidelity, efficiency, shares of teachers, condensed data."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rldistill.core.entries import flat_values, value_names
from rldistill.data.condense import state_weights
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import FILE as MANIFEST
from rldistill.data.manifest import Condensed, Manifest
from rldistill.distillation.weighting import FILE as WEIGHTING
from rldistill.distillation.weighting import TeacherShares
from rldistill.evaluation.disagreements import as_picture, shown_obs
from rldistill.evaluation.non_inferiority import NonInferiorityResult
from rldistill.evaluation.results import Evaluation, policy_rows
from rldistill.evaluation.tables import NONE, Rows, TableCell, figure, number_text, percent_text
from rldistill.reporting.charts import lines_chart
from rldistill.reporting.sections import TitledChart, action_text

HIGHLIGHTS = ("normalized", "agreement", "action RMSE", "parameters", "latency", "env steps")
Shares = Mapping[str, Sequence[TeacherShares]]
"""Shares of the teachers by student, for each of its training seeds."""
MAX_STATES = 24
MAX_COLUMNS = 12
"""Largest number of values of a state in the table."""


def highlights(evaluation: Evaluation) -> list[TableCell]:
    """Return the figures of the best student under the verdict."""
    best = evaluation.best_student
    rows = [row for row in policy_rows(evaluation) if best is not None and row[0].text == best[0]]
    return [cell for row in rows for cell in row if cell.column in HIGHLIGHTS]


def statistics_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each policy; the success rate only if the environment reports it."""
    rows, reported = [], any(entry.success_rate is not None for entry in evaluation.policies.values())
    tests = [entry.non_inferiority for entry in evaluation.policies.values() if entry.non_inferiority]
    keeps = f"keeps {percent_text(1 - tests[0].margin)} of the lead" if tests else "keeps the lead"
    for name, entry in evaluation.policies.items():
        test = entry.non_inferiority
        rows.append(
            [
                TableCell("policy", name),
                TableCell(keeps, NONE) if test is None else TableCell(keeps, test.decision, bounds_text(test)),
                figure("median", entry.median),
                figure("IQM", entry.iqm),
                figure("optimality gap", entry.optimality_gap, ".3f"),
                figure("P(improvement)", entry.probability_of_improvement, ".0%"),
                *([figure("success", entry.success_rate, ".0%")] if reported else []),
            ]
        )
    return rows


def bounds_text(test: NonInferiorityResult) -> str:
    """Return the bounds of a student's mean return, as distances from the required one; empty without any."""
    if test.lower is None or test.upper is None or test.lower >= test.upper:
        return ""
    low, high = number_text(abs(test.lower)), number_text(abs(test.upper))
    if test.lower < 0 < test.upper:
        return f"{low} short to {high} above"
    return f"{low} to {high} above" if test.lower >= 0 else f"{high} to {low} short"


def fidelity_rows(evaluation: Evaluation) -> Rows:
    """Return two lists of cells for each student, without the columns that no student has."""
    rows = []
    for name, entry in evaluation.students.items():
        close = entry.fidelity
        kinds = {"the teacher's states": close.teacher_states, "its own states": close.own_states} if close else {}
        for kind, metrics in kinds.items():
            if metrics is None:
                continue
            random = f"random {metrics.random_regret:.3g}" if metrics.random_regret else ""
            rows.append(
                [
                    TableCell("student", name, kind),
                    figure("states", metrics.states, ","),
                    figure("agreement", metrics.agreement, ".1%"),
                    figure("action RMSE", metrics.action_rmse, ".3g"),
                    figure("KL", metrics.kl, ".3g"),
                    figure("value RMSE", metrics.value_rmse, ".3g"),
                    figure("regret", metrics.regret, ".3g", random),
                ]
            )
    columns = [column for column in zip(*rows, strict=True) if any(cell.text != NONE for cell in column)]
    return [list(row) for row in zip(*columns, strict=True)]


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


def teacher_shares(run: Path, students: Sequence[str]) -> dict[str, list[TeacherShares]]:
    """Return the shares of the teachers for the students of a run; none if it has one teacher."""
    files = {name: sorted((run / "students" / name).glob(f"seed-*/{WEIGHTING}")) for name in students}
    return {name: [TeacherShares.read(path) for path in paths] for name, paths in files.items() if paths}


def share_rows(shares: Shares) -> Rows:
    """Return a list of cells for each teacher: the returns of its own episodes, and its share for each student."""
    if not shares:
        return []
    first = next(iter(shares.values()))[0]
    return [
        [
            TableCell("teacher", name),
            figure("own return", own.mean_return, note=f"{own.episodes} episodes"),
            *(
                figure(student, float(np.mean([run.teachers[name].share for run in runs])), ".0%", runs[0].weighting)
                for student, runs in shares.items()
            ),
        ]
        for name, own in first.teachers.items()
    ]


def region_rows(shares: Shares) -> Rows:
    """Return a list of cells for each region of states: the share of each teacher for the first training seed."""
    return [
        [
            TableCell("student", student),
            TableCell("where", region.rule, f"{region.states:.0%} of the states"),
            *(figure(name, share, ".0%") for name, share in region.shares.items()),
        ]
        for student, runs in shares.items()
        for region in runs[0].regions
    ]


def share_charts(shares: Shares) -> list[TitledChart]:
    """Return a chart for each student with the shares of its teachers over the course of an episode."""
    charts = []
    for student, runs in shares.items():
        lines = {}
        for name in runs[0].teachers:
            mean = np.mean([run.teachers[name].over_time for run in runs], 0)
            lines[name] = [((part + 0.5) / len(mean), float(value)) for part, value in enumerate(mean)]
        title = f"{student}: share of each teacher over the course of an episode"
        charts.append((title, lines_chart(lines, "part of the episode", "share")))
    return charts


@dataclass(frozen=True)
class CondensedStates:
    """First states of condensed data: a row of a table for each, or a picture with its caption."""

    choice: Condensed
    rows: Rows = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)


def condensed_states(run: Path) -> CondensedStates | None:
    """Return the first states of the condensed dataset of a run, in the order of their choice; None without one."""
    folder = run / "dataset"
    if not (folder / MANIFEST).exists():
        return None
    rounds = Manifest.read(folder).rounds
    number, choice = next(((n, round.condensed) for n, round in rounds.items() if round.condensed), (0, None))
    if choice is None:
        return None
    data = Dataset.read([folder], verify=False, only_round=number)
    kept = np.flatnonzero(~data.heldout)[:MAX_STATES]
    states, batch, names = CondensedStates(choice), data.batch(kept), value_names(data.spec)[:MAX_COLUMNS]
    actions, weights = batch.teacher.mode().tolist(), state_weights(data.spec.head, batch.teacher.params).tolist()
    for rank, (obs, action, weight) in enumerate(zip(data.observations(kept), actions, weights, strict=True), 1):
        picture = as_picture(shown_obs(obs.numpy(), data.spec))
        if picture is not None:
            import imageio.v2 as imageio

            png = base64.b64encode(imageio.imwrite("<bytes>", picture, format="PNG")).decode()
            caption = f"{rank}: action {action_text(action)}, gap {weight:.3g}"
            states.pictures.append((f"data:image/png;base64,{png}", caption))
            continue
        values = flat_values(obs[None], data.spec).float().ravel().tolist()
        cells = [TableCell("state", str(rank)), TableCell("action", action_text(action))]
        figures = zip(["gap", *names], [weight, *values], strict=False)
        states.rows.append([*cells, *(figure(name, value, ".3g") for name, value in figures)])
    return states
