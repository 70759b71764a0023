"""Results of an evaluation: the content of `evaluation.json`, its table and its verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from rich.table import Table

from rldistill.core.errors import CorruptArtifactError
from rldistill.evaluation.non_inferiority import NonInferiorityResult
from rldistill.evaluation.records import Doubt, Efficiency, PolicyResult, Result, Robustness
from rldistill.evaluation.tables import NONE, Rows, TableCell, figure, number_text, percent_text, rich_table
from rldistill.io.atomic import read_json

REPORT_COLUMNS, REPORT_NOTES = ("IQM", "discounted", "multiply-adds"), ("policy", "latency")
"""Columns, and columns of the notes, that a terminal has no space for."""


class Evaluation(Result):
    """Result of `evaluate`. It prints as the table of the command line; `to_dict` is the content of evaluation.json."""

    env: str
    env_kwargs: dict[str, Any]
    episodes: int
    seeds: list[int]
    versions: dict[str, Any]
    profile_at: list[float]
    warnings: list[Doubt]
    policies: dict[str, PolicyResult]
    efficiency: dict[str, Efficiency]
    robustness: Robustness | None = None

    @model_validator(mode="after")
    def _require_teacher(self) -> Evaluation:
        if "teacher" not in [entry.kind for entry in self.policies.values()]:
            raise ValueError("no policy is a teacher")
        return self

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Read `evaluation.json`; raise CorruptArtifactError if it is missing or incomplete."""
        if not path.exists():
            raise CorruptArtifactError(f"{path}: the run has no evaluation yet. Run `rldistill evaluate` first.")
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise CorruptArtifactError(
                f"{path}: {where + ': ' if where else ''}{first['msg']}. Run `rldistill evaluate` again."
            ) from None

    @property
    def teacher(self) -> PolicyResult:
        """Result of the teacher."""
        return next(entry for entry in self.policies.values() if entry.kind == "teacher")

    @property
    def students(self) -> dict[str, PolicyResult]:
        """Results of the students."""
        return {name: entry for name, entry in self.policies.items() if entry.kind == "student"}

    @property
    def best_student(self) -> tuple[str, PolicyResult] | None:
        """Name and result of the student with the highest mean return; None without students."""
        return max(self.students.items(), key=lambda item: item[1].mean, default=None)

    def blocks(self) -> list[Table | str]:
        """Return the table of the policies, the one of perturbations, the verdict and the warnings."""
        tables = [rich_table(terminal_rows(self), f"{self.env}, {self.episodes} episodes")]
        if self.robustness is not None and self.robustness.perturbations:
            tables.append(rich_table(robustness_rows(self), f"robustness, {self.robustness.episodes} episodes"))
        return [*tables, verdict(self), *(f"warning: {doubt.name}: {doubt.text}" for doubt in self.warnings)]


def policy_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each policy, under the same columns."""
    rows, teacher = [], evaluation.teacher
    continuous = any(entry.action_rmse is not None for entry in evaluation.policies.values())
    for name, entry in evaluation.policies.items():
        kind = entry.kind + (f", {len(entry.runs)} seeds" if len(entry.runs) > 1 else "")
        if entry.distinct_runs == 1 < len(entry.runs):
            kind += ", all alike"
        agreement, rmse = figure("agreement", entry.agreement, ".1%"), figure("action RMSE", entry.action_rmse, ".3g")
        macs, latency = entry.macs or None, entry.latency_us
        row = [
            TableCell("policy", name, kind if kind != name else ""),
            figure("mean return", entry.mean, ci95=entry.ci95),
            figure("IQM", entry.iqm),
            figure("discounted", entry.discounted_mean),
            figure("normalized", entry.normalized, ".3f", entry.normalized_ci95),
            rmse if continuous else agreement,
            figure("parameters", entry.parameters or None, ",", note=_size_note(entry, teacher)),
            TableCell("multiply-adds", f"{macs / 1e6:,.1f}M" if macs and macs >= 1e6 else number_text(macs, ",")),
            TableCell("latency", f"{latency['p50']:,.0f} µs", f"p99 {latency['p99']:,.0f} µs")
            if latency
            else TableCell("latency", NONE),
            figure("env steps", entry.env_steps or None, ","),
        ]
        rows.append(row)
    return rows


def terminal_rows(evaluation: Evaluation) -> Rows:
    """Return the rows of `policy_rows`, without the figures and notes that a terminal has no space for."""
    rows = [[cell for cell in row if cell.column not in REPORT_COLUMNS] for row in policy_rows(evaluation)]
    return [[replace(cell, note="") if cell.column in REPORT_NOTES else cell for cell in row] for row in rows]


def _size_note(entry: PolicyResult, teacher: PolicyResult) -> str:
    if not entry.parameters:
        return ""
    if entry.kind != "student" or not teacher.parameters:
        size = entry.bytes or 0
        return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    if entry.parameters > teacher.parameters:
        return "larger than the teacher"
    times = teacher.parameters / entry.parameters
    return f"{times:.1f} times smaller" if times > 1 else "the teacher's size"


def robustness_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each perturbation: the mean return of each policy, and the loss under it."""
    perturbations = evaluation.robustness.perturbations if evaluation.robustness else {}
    return [
        [
            TableCell("perturbation", name),
            *(figure(policy, row.mean, note=f"lost {number_text(row.lost)}") for policy, row in rows.items()),
        ]
        for name, rows in perturbations.items()
    ]


def verdict(evaluation: Evaluation) -> str:
    """Return one sentence on the best student."""
    teacher, best = evaluation.teacher, evaluation.best_student
    if best is None:
        return "No student was evaluated."
    if teacher.normalized is None:
        return "The teacher is no better than random play, so there was nothing to distil. Use another teacher."
    name, student = best
    if student.normalized is None or student.normalized_ci95 is None:
        return (
            "The teacher is not clearly better than random play, so the score of its students cannot be measured. "
            "Evaluate more episodes, or use another teacher."
        )
    low, high = student.normalized_ci95
    score = f"(normalized score {student.normalized:.3f}, 95% interval {low:.3f} to {high:.3f})"
    steps = f" from {student.env_steps:,} environment steps" if student.env_steps else ""
    test = student.non_inferiority
    if low <= 0:
        unclear = f"the best student, {name}, is not clearly better than random play {score}"
        if test is None or test.episodes >= test.min_episodes:
            return f"Nothing was learned: {unclear}{steps}."
        least = f"Evaluate at least {test.min_episodes} episodes."
        return f"Too few episodes to decide: after {test.episodes}, {unclear}. {least}"
    lead, result = "its teacher's lead over random play", f"{student.normalized:.1%}"
    facts = f"{score}{steps}{_size_clause(student.parameters, teacher.parameters)}"
    if test is None:
        return f"The student {name} reaches {result} of {lead} {facts}."
    decision = {
        "yes": f"The student {name} keeps",
        "no": f"The student {name} does not keep",
        "undecided": f"It is undecided whether the student {name} keeps",
    }[test.decision]
    kept = percent_text(1 - test.margin)
    return f"{decision} {kept} of {lead}: it reaches {result} {facts}{_needed_clause(test)}."


def _needed_clause(test: NonInferiorityResult) -> str:
    if test.decision != "undecided":
        return ""
    if not test.episodes_needed:
        return "; more episodes would not decide it"
    least = f"; a yes takes at least {test.min_episodes} episodes" if test.episodes < test.min_episodes else ""
    return f"{least}; run {test.episodes_needed:,} more episodes"


def _size_clause(student: int | None, teacher: int | None) -> str:
    if not (student and teacher):
        return ""
    if student > teacher:
        return f", but is larger than its teacher: {student:,} parameters against {teacher:,}"
    return (
        f", and is {teacher / student:.1f} times smaller than its teacher"
        if student < teacher
        else (", at its teacher's size")
    )
