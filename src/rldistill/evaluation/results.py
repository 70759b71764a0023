"""Results of an evaluation: the content of `evaluation.json`, its table and its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError, model_validator

from rldistill.core.errors import CorruptArtifactError
from rldistill.evaluation.non_inferiority import NonInferiorityResult
from rldistill.evaluation.records import Doubt, Efficiency, PolicyResult, Record, Robustness
from rldistill.evaluation.tables import (
    NONE,
    Printable,
    Rows,
    TableCell,
    interval_text,
    number_text,
    optional_text,
    percent_text,
    rich_table,
)
from rldistill.io.atomic import read_json

if TYPE_CHECKING:
    from rich.console import RenderableType

TERMINAL_COLUMNS = (
    "policy",
    "mean return",
    "normalized",
    "agreement",
    "action RMSE",
    "parameters",
    "latency",
    "env steps",
)
NOTED_COLUMNS = ("mean return", "normalized", "parameters")


class Evaluation(Printable, Record):
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
        """Read `evaluation.json`.

        Raises:
            CorruptArtifactError: the file is missing or incomplete.
        """
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

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `evaluation.json`."""
        return self.model_dump(mode="json")

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

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        rows = [[cell for cell in row if cell.column in TERMINAL_COLUMNS] for row in policy_rows(self)]
        parts: list[RenderableType] = [rich_table(rows, f"{self.env}, {self.episodes} episodes", NOTED_COLUMNS)]
        if robustness := robustness_rows(self):
            assert self.robustness is not None
            parts.append(rich_table(robustness, f"robustness, {self.robustness.episodes} episodes"))
        parts.append(Text(verdict(self)))
        return Group(*parts, *(Text(f"warning: {doubt.name}: {doubt.text}") for doubt in self.warnings))


def policy_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each policy, under the same columns."""
    teacher = evaluation.teacher
    continuous = any(entry.action_rmse is not None for entry in evaluation.policies.values())
    return [_policy_cells(name, entry, teacher, continuous) for name, entry in evaluation.policies.items()]


def _policy_cells(name: str, entry: PolicyResult, teacher: PolicyResult, continuous: bool) -> list[TableCell]:
    seeds = f", {len(entry.runs)} seeds" if len(entry.runs) > 1 else ""
    if seeds and entry.distinct_runs == 1:
        seeds = f", {len(entry.runs)} seeds, all alike"
    kind = entry.kind + seeds
    latency = entry.latency_us
    return [
        TableCell("policy", name, kind if kind != name else ""),
        TableCell("mean return", number_text(entry.mean), interval_text(entry.ci95, number_text)),
        TableCell("IQM", number_text(entry.iqm)),
        TableCell("discounted", number_text(entry.discounted_mean)),
        TableCell(
            "normalized",
            optional_text(entry.normalized, "{:.3f}"),
            interval_text(entry.normalized_ci95, "{:.3f}".format),
        ),
        TableCell("action RMSE", optional_text(entry.action_rmse, "{:.3g}"))
        if continuous
        else TableCell("agreement", optional_text(entry.agreement, "{:.1%}")),
        _parameters(entry, teacher),
        TableCell("multiply-adds", _large_count(entry.macs) if entry.macs else NONE),
        TableCell("latency", f"{latency['p50']:,.0f} µs", f"p99 {latency['p99']:,.0f} µs")
        if latency
        else TableCell("latency", NONE),
        TableCell("env steps", f"{entry.env_steps:,}" if entry.env_steps else NONE),
    ]


def _parameters(entry: PolicyResult, teacher: PolicyResult) -> TableCell:
    if not entry.parameters:
        return TableCell("parameters", NONE)
    size = entry.bytes or 0
    note = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    if entry.kind == "student" and teacher.parameters:
        if entry.parameters > teacher.parameters:
            note = "larger than the teacher"
        elif entry.parameters < teacher.parameters:
            note = f"{teacher.parameters / entry.parameters:.1f} times smaller"
        else:
            note = "the teacher's size"
    return TableCell("parameters", f"{entry.parameters:,}", note)


def _large_count(count: int) -> str:
    return f"{count / 1e6:,.1f}M" if count >= 1e6 else f"{count:,}"


def robustness_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each perturbation: the mean return of each policy, and the loss under it."""
    perturbations = evaluation.robustness.perturbations if evaluation.robustness else {}
    return [
        [
            TableCell("perturbation", name),
            *(TableCell(who, number_text(row.mean), f"lost {number_text(row.lost)}") for who, row in rows.items()),
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
    score = f"normalized score {student.normalized:.3f}, 95% interval {low:.3f} to {high:.3f}"
    steps = f" from {student.env_steps:,} environment steps" if student.env_steps else ""
    answer = student.non_inferiority
    if low <= 0:
        if answer is not None and answer.episodes < answer.min_episodes:
            return (
                f"Too few episodes to decide: after {answer.episodes}, the best student, {name}, is not clearly better "
                f"than random play ({score}). Evaluate at least {answer.min_episodes} episodes."
            )
        return (
            f"Nothing was learned: the best student, {name}, is not clearly better than random play ({score}){steps}."
        )
    result = f"{student.normalized:.1%}"
    size = _size_clause(student.parameters, teacher.parameters)
    if answer is None:
        return f"The student {name} reaches {result} of its teacher's lead over random play ({score}){steps}{size}."
    return f"{_decision_clause(name, answer)}: it reaches {result} ({score}){steps}{size}{_needed_clause(answer)}."


def _decision_clause(name: str, answer: NonInferiorityResult) -> str:
    lead = f"{percent_text(1 - answer.margin)} of its teacher's lead over random play"
    if answer.decision == "undecided":
        return f"It is undecided whether the student {name} keeps {lead}"
    return f"The student {name} {'keeps' if answer.decision == 'yes' else 'does not keep'} {lead}"


def _needed_clause(answer: NonInferiorityResult) -> str:
    if answer.decision != "undecided":
        return ""
    if not answer.episodes_needed:
        return "; more episodes would not decide it"
    least = f"; a yes takes at least {answer.min_episodes} episodes" if answer.episodes < answer.min_episodes else ""
    return f"{least}; run {answer.episodes_needed:,} more episodes"


def _size_clause(student: int | None, teacher: int | None) -> str:
    if not (student and teacher):
        return ""
    if student > teacher:
        return f", but is larger than its teacher: {student:,} parameters against {teacher:,}"
    if student < teacher:
        return f", and is {teacher / student:.1f} times smaller than its teacher"
    return ", at its teacher's size"
