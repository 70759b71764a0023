"""Section of the report on several teachers: their own returns, and the share of each in the labels of a student."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rldistill.distillation.weighting import FILE, TeacherShares
from rldistill.evaluation.tables import Rows, TableCell, figure
from rldistill.io.atomic import read_json
from rldistill.reporting.charts import lines_chart
from rldistill.reporting.sections import TitledChart

Shares = Mapping[str, Sequence[TeacherShares]]
"""Shares of the teachers by student, for each of its training seeds."""


def teacher_shares(run: Path, students: Sequence[str]) -> dict[str, list[TeacherShares]]:
    """Return the shares of the teachers for the students of a run; none if it has one teacher."""
    files = {name: sorted((run / "students" / name).glob(f"seed-*/{FILE}")) for name in students}
    return {
        name: [TeacherShares.parse(read_json(path, TeacherShares.advice), path) for path in paths]
        for name, paths in files.items()
        if paths
    }


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
