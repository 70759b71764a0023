"""Evaluation of students of several tasks: the mean of their normalized scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from rich.table import Table

from rldistill.evaluation import statistics as stats
from rldistill.evaluation.episodes import reference_name
from rldistill.evaluation.results import Evaluation, PolicyResult
from rldistill.evaluation.statistics import Estimate
from rldistill.evaluation.tables import Record, Result, Rows, TableCell, figure, interval_text, number_text, rich_table


class TasksScore(Record):
    """Score of a student of several tasks.

    Attributes:
        parameters: Number of trained parameters, shared ones once.
        env_steps: Environment steps in all tasks.
        mean: Mean of the normalized scores; None if a teacher does not beat random play.
        normalized: Normalized score in each task.
        kept: Decision of the non-inferiority test in each task; None without a test.
    """

    parameters: int
    env_steps: int
    mean: Estimate | None
    normalized: dict[str, Estimate | None]
    kept: dict[str, str | None]


class TasksEvaluation(Result):
    """Result of an evaluation in several tasks; that of each task is in `tasks/NAME/evaluation.json`.

    Attributes:
        tasks: Environments of the tasks.
        margin: Share of a teacher's lead over random play that a student may lose.
        students: Scores of the students.
    """

    tasks: dict[str, str]
    margin: float
    students: dict[str, TasksScore]
    advice: ClassVar[str] = "Run `rldistill evaluate` again."

    @classmethod
    def of(cls, evaluations: Mapping[str, Evaluation], parameters: Mapping[str, int], margin: float) -> TasksEvaluation:
        """Return the scores of students with these numbers of parameters, from the evaluations of all tasks."""
        students = {}
        for name, count in parameters.items():
            own = {task: evaluation.policies[name] for task, evaluation in evaluations.items()}
            students[name] = TasksScore(
                parameters=count,
                env_steps=sum(entry.env_steps for entry in own.values()),
                mean=mean_score([*evaluations.values()], name),
                normalized={task: entry.normalized for task, entry in own.items()},
                kept={task: getattr(entry.non_inferiority, "decision", None) for task, entry in own.items()},
            )
        return cls(tasks={task: own.env for task, own in evaluations.items()}, margin=margin, students=students)

    @property
    def rows(self) -> Rows:
        """Cells of each student: the mean score, those of the tasks, and the cost."""
        return [
            [
                TableCell("student", name),
                figure("mean score", entry.mean, ".3f"),
                *(figure(task, entry.normalized[task], ".3f") for task in self.tasks),
                TableCell("kept", f"{[*entry.kept.values()].count('yes')} of {len(self.tasks)}"),
                figure("parameters", entry.parameters, ","),
                figure("env steps", entry.env_steps, ","),
            ]
            for name, entry in self.students.items()
        ]

    @property
    def verdict(self) -> str:
        """One sentence on the student with the highest mean score."""
        scores = {name: entry.mean.value for name, entry in self.students.items() if entry.mean is not None}
        if not scores:
            return "No student was evaluated, or a teacher is not better than random play."
        name = max(scores, key=lambda name: scores[name])
        best = self.students[name]
        decided = {
            word: [task for task, own in best.kept.items() if own == word] for word in ("yes", "no", "undecided")
        }
        lost = f"; not in {', '.join(decided['no'])}" if decided["no"] else ""
        unclear = f"; undecided in {', '.join(decided['undecided'])}" if decided["undecided"] else ""
        interval = interval_text(best.mean.ci95, ".3f") if best.mean else ""
        return (
            f"The student {name}, with {best.parameters:,} parameters, keeps {1 - self.margin:.0%} of its teacher's "
            f"lead in {len(decided['yes'])} of {len(self.tasks)} tasks{lost}{unclear}. Its mean normalized score is "
            f"{number_text(scores[name], '.3f')}{f' (95% interval {interval})' if interval else ''}."
        )

    def blocks(self) -> list[Table | str]:
        """Return the table of the students and the verdict."""
        table = [rich_table(self.rows, f"{len(self.tasks)} tasks, normalized scores")] if self.students else []
        return [*table, self.verdict]


def mean_score(evaluations: list[Evaluation], name: str) -> Estimate | None:
    """Return the mean over tasks of a student's normalized scores; None if a teacher does not beat random play.

    With all returns of task k divided by the teacher's lead over random play there, the mean of the scores is the score
    of the mean return. Its interval is that of `normalized_score`: a training seed is drawn for all tasks together.
    """
    episodes, parts, distinct = min(own.policies[name].episodes for own in evaluations), [], []
    for evaluation in evaluations:
        policies = evaluation.policies
        compared = [policies[name], policies["teacher"], policies[reference_name(policies)]]
        returns = [_returns(entry)[:, :episodes] for entry in compared]
        lead = returns[1].mean() - returns[2].mean()
        if not lead > 0:
            return None
        parts.append([own / lead for own in returns])
        distinct.append(min(entry.distinct_episodes for entry in compared))
    policy, teacher, random = (np.mean(part, 0) for part in zip(*parts, strict=True))
    return stats.normalized_score(policy, teacher, random, distinct=min(episodes, *distinct))


def _returns(entry: PolicyResult) -> stats.Returns:
    return np.array([run.returns for run in entry.runs])
