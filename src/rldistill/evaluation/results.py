"""Results of an evaluation: the content of `evaluation.json`, its table, its verdict, and the next step."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import MinLen
from pydantic import Field, model_validator
from rich.table import Table

from rldistill.core.errors import CorruptArtifactError
from rldistill.evaluation.changed_play import Robustness, Teams, perturbed_rows
from rldistill.evaluation.episodes import PolicyKind
from rldistill.evaluation.non_inferiority import NonInferiorityResult
from rldistill.evaluation.statistics import Estimate
from rldistill.evaluation.tables import Record, Result, Rows, TableCell, figure, number_text, percent_text, rich_table
from rldistill.evaluation.worlds import WorldResults, world_rows
from rldistill.io.run_file import command_arguments

REPORT_COLUMNS, REPORT_NOTES = ("IQM", "discounted", "multiply-adds"), ("policy", "latency")
"""Columns, and columns of the notes, that a terminal has no space for."""


Latency = Annotated[dict[Annotated[str, Field(pattern="^p(50|99)$")], float], MinLen(2)]


class RunReturns(Record):
    """Returns of one policy, episode by episode, and its further metrics (None: the episode does not report it)."""

    training_seed: int | None
    returns: Annotated[list[float], MinLen(1)]
    metrics: dict[str, list[float | None]] = Field(default_factory=dict)


class Profile(Record):
    """Share of episodes above each threshold, with its 95% band."""

    share: list[float]
    low: list[float]
    high: list[float]


class StateMetrics(Record):
    """Differences between a student's and its teacher's decisions, averaged over states; None if not defined."""

    states: int
    agreement: float | None = None
    action_rmse: float | None = None
    kl: float | None = None
    value_rmse: float | None = None
    regret: float | None = None
    random_regret: float | None = None


class Fidelity(Record):
    """Fidelity of a student on the teacher's held-out states (None without a dataset) and on its own states.

    `temperature` softens the teacher's distribution in the KL; `disagreements` is the folder of the largest ones.
    """

    temperature: float
    regret_unit: str | None
    teacher_states: StateMetrics | None
    own_states: StateMetrics
    disagreements: str


class PolicyResult(Record):
    """Returns, statistics, cost and fidelity of one policy.

    Attributes:
        distinct_episodes: number of episodes that differ in first observation, actions or return.
        distinct_runs: number of training seeds whose returns differ.
        agreement, action_rmse: agreement with the teacher on the student's own states.
        probability_of_improvement: probability of a higher return than the teacher's in the same episode.
        metrics: means of `evaluate.metrics` over the episodes that report them; None without any.
    """

    kind: PolicyKind
    runs: Annotated[list[RunReturns], MinLen(1)]
    distinct_episodes: int
    distinct_runs: int
    mean: Estimate
    median: Estimate
    iqm: Estimate
    normalized: Estimate | None
    optimality_gap: Estimate | None
    probability_of_improvement: Estimate | None
    profile: Profile
    success_rate: float | None
    discounted_mean: float
    agreement: float | None
    action_rmse: float | None
    parameters: int | None
    bytes: int | None
    macs: int | None
    activations: int | None
    latency_us: Latency | None
    batch_latency_us: dict[str, Latency] | None
    env_steps: int
    non_inferiority: NonInferiorityResult | None
    fidelity: Fidelity | None
    metrics: dict[str, Estimate | None] = Field(default_factory=dict)

    @property
    def episodes(self) -> int:
        """Number of episodes of each training seed."""
        return len(self.runs[0].returns)

    @property
    def returns(self) -> list[float]:
        """Returns of all runs."""
        return [value for run in self.runs for value in run.returns]


class Efficiency(Record):
    """Normalized score against environment steps, and the first step at which each percentage was reached."""

    curve: list[tuple[float, float]]
    to: dict[str, int | None]


class Evaluation(Result):
    """Result of `evaluate`. It prints as the table of the command line; `to_dict` is the content of evaluation.json.

    Attributes:
        episodes: episodes of each training seed; a student that was decided before has fewer.
        baseline: name of the user's own policy that the scores compare with; None for random play.
    """

    env: str
    env_kwargs: dict[str, Any]
    episodes: int
    seeds: list[int]
    versions: dict[str, Any]
    profile_at: Annotated[list[float], MinLen(1)]
    warnings: dict[str, str]
    policies: dict[str, PolicyResult]
    efficiency: dict[str, Efficiency]
    robustness: Robustness | None = None
    teams: Teams | None = None
    worlds: WorldResults = Field(default_factory=dict)
    baseline: str | None = None
    advice: ClassVar[str] = "Run `rldistill evaluate` again."

    @model_validator(mode="after")
    def _require_consistent(self) -> Evaluation:
        if "teacher" not in self.policies:
            raise ValueError("no policy is a teacher")
        for name, entry in self.policies.items():
            counts = {len(run.returns) for run in entry.runs}
            if (
                len(counts) > 1
                or (entry.kind != "student" and counts != {self.episodes})
                or max(counts) > self.episodes
            ):
                raise ValueError(f"policies.{name}.runs: expected {self.episodes} returns in each")
            if {len(part) for _, part in entry.profile} != {len(self.profile_at)}:
                raise ValueError(f"policies.{name}.profile: expected {len(self.profile_at)} values, as in profile_at")
        return self

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Read `evaluation.json`; raise CorruptArtifactError if it is missing or incomplete."""
        if not path.parent.exists():
            raise CorruptArtifactError(f"{path.parent}: there is no such folder. Name the folder of a run.")
        if not path.exists():
            raise CorruptArtifactError(f"{path}: the run has no evaluation yet. Run `rldistill evaluate` first.")
        return super().read(path)

    @property
    def reference(self) -> str:
        """Noun of the policy with the normalized score 0."""
        return reference_noun(self.baseline)

    @property
    def teacher(self) -> PolicyResult:
        """Result of the teacher."""
        return self.policies["teacher"]

    @property
    def students(self) -> dict[str, PolicyResult]:
        """Results of the students."""
        return {name: entry for name, entry in self.policies.items() if entry.kind == "student"}

    @property
    def best_student(self) -> tuple[str, PolicyResult] | None:
        """Name and result of the student with the highest mean return; None without students."""
        return max(self.students.items(), key=lambda item: item[1].mean.value, default=None)

    @property
    def decided_earlier(self) -> str:
        """Students with fewer episodes, in parentheses; empty without any."""
        fewer = [f"{name} {entry.episodes}" for name, entry in self.students.items() if entry.episodes < self.episodes]
        return f" ({', '.join(fewer)}: decided earlier)" if fewer else ""

    def blocks(self) -> list[Table | str]:
        """Return the table of the policies, the one of perturbations, the verdict and the warnings."""
        against = "" if self.baseline is None else f", normalized by {self.reference}"
        tables = [
            rich_table(terminal_rows(self), f"{self.env}, {self.episodes} episodes{self.decided_earlier}{against}")
        ]
        if self.robustness is not None and self.robustness.perturbations:
            tables.append(rich_table(robustness_rows(self), f"robustness, {self.robustness.episodes} episodes"))
        if self.teams is not None:
            tables.append(rich_table(team_rows(self), f"mixed teams, {self.teams.episodes} episodes"))
        if self.worlds:
            tables.append(rich_table(world_rows(self.worlds), f"other worlds, {self.episodes} episodes"))
        return [*tables, verdict(self), *(f"warning: {name}: {text}" for name, text in self.warnings.items())]


def reference_noun(baseline: str | None) -> str:
    """Return the noun of the policy with the normalized score 0."""
    return "random play" if baseline is None else f"the baseline {baseline}"


def policy_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each policy, under the same columns."""
    rows, teacher = [], evaluation.teacher
    continuous = any(entry.action_rmse is not None for entry in evaluation.policies.values())
    for name, entry in evaluation.policies.items():
        role = evaluation.baseline or "baseline" if entry.kind == "baseline" else entry.kind
        kind = role + (f", {len(entry.runs)} seeds" if len(entry.runs) > 1 else "")
        if entry.distinct_runs == 1 < len(entry.runs):
            kind += ", all alike"
        agreement, rmse = figure("agreement", entry.agreement, ".1%"), figure("action RMSE", entry.action_rmse, ".3g")
        macs, latency, size, note = entry.macs or None, entry.latency_us, entry.bytes or 0, ""
        if entry.parameters and entry.kind == "student" and teacher.parameters:
            times = teacher.parameters / entry.parameters
            note = f"{times:.1f} times fewer" if times > 1 else "the teacher's size"
            note = "larger than the teacher" if times < 1 else note
        elif entry.parameters:
            note = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
        rows.append(
            [
                TableCell("policy", name, kind if kind != name else ""),
                figure("mean return", entry.mean),
                figure("IQM", entry.iqm.value),
                figure("discounted", entry.discounted_mean),
                figure("normalized", entry.normalized, ".3f"),
                *(figure(metric, entry.metrics.get(metric)) for metric in teacher.metrics),
                rmse if continuous else agreement,
                figure("parameters", entry.parameters or None, ",", note),
                TableCell("multiply-adds", f"{macs / 1e6:,.1f}M" if macs and macs >= 1e6 else number_text(macs, ",")),
                TableCell("latency", f"{latency['p50']:,.0f} µs", f"p99 {latency['p99']:,.0f} µs")
                if latency
                else figure("latency", None),
                figure("env steps", entry.env_steps or None, ","),
            ]
        )
    return rows


def terminal_rows(evaluation: Evaluation) -> Rows:
    """Return the rows of `policy_rows`, without the figures and notes that a terminal has no space for."""
    rows = [[cell for cell in row if cell.column not in REPORT_COLUMNS] for row in policy_rows(evaluation)]
    return [[replace(cell, note="") if cell.column in REPORT_NOTES else cell for cell in row] for row in rows]


def robustness_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each perturbation: the mean return of each policy, and the loss under it."""
    return perturbed_rows("perturbation", evaluation.robustness.perturbations if evaluation.robustness else {})


def team_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each mixed team: the mean return with each policy, and the loss."""
    return perturbed_rows("team", evaluation.teams.compositions if evaluation.teams else {})


def agreement_rows(evaluation: Evaluation) -> Rows:
    """Return a list of cells for each agent: its agreement with its teacher in each student's team."""
    agreement = evaluation.teams.agreement if evaluation.teams else {}
    agents = list(next(iter(agreement.values()), {}))
    return [
        [TableCell("agent", agent), *(figure(name, own[agent], ".3f") for name, own in agreement.items())]
        for agent in agents
    ]


def verdict(evaluation: Evaluation) -> str:
    """Return one sentence on the best student."""
    teacher, best, reference = evaluation.teacher, evaluation.best_student, evaluation.reference
    if best is None:
        return "No student was evaluated."
    if teacher.normalized is None:
        return f"The teacher is no better than {reference}, so there was nothing to distil. Use another teacher."
    name, student = best
    if student.normalized is None or student.normalized.ci95 is None:
        return (
            f"The teacher is not clearly better than {reference}, so the score of its students cannot be measured. "
            "Evaluate more episodes, or use another teacher."
        )
    low, high = student.normalized.ci95
    score = f"(normalized score {student.normalized.value:.3f}, 95% interval {low:.3f} to {high:.3f})"
    steps = f" from {student.env_steps:,} environment steps" if student.env_steps else ""
    test = student.non_inferiority
    if low <= 0:
        unclear = f"the best student, {name}, is not clearly better than {reference} {score}"
        if test is None or test.episodes >= test.min_episodes:
            return f"Nothing was {'learned' if evaluation.baseline is None else 'gained'}: {unclear}{steps}."
        least = f"Evaluate at least {test.min_episodes} episodes."
        return f"Too few episodes to decide: after {test.episodes}, {unclear}. {least}"
    size, own, theirs = "", student.parameters, teacher.parameters
    if own and theirs:
        size = f", but is larger than its teacher: {own:,} parameters against {theirs:,}"
        if own <= theirs:
            times = f", and has {theirs / own:.1f} times fewer trained parameters than its teacher"
            size = times if own < theirs else ", at its teacher's size"
    lead, result = f"its teacher's lead over {reference}", f"{student.normalized.value:.1%}"
    facts = f"{score}{steps}{size}"
    if test is None:
        return f"The student {name} reaches {result} of {lead} {facts}."
    decision = {
        "yes": f"The student {name} keeps",
        "no": f"The student {name} does not keep",
        "undecided": f"It is undecided whether the student {name} keeps",
    }[test.decision]
    more = ""
    if test.decision == "undecided" and not test.episodes_needed:
        more = "; more episodes would not decide it"
    elif test.decision == "undecided":
        least = f"; a yes takes at least {test.min_episodes} episodes" if test.episodes < test.min_episodes else ""
        expected = f"{least}; run" if test.estimate > 0 else "; for a no, which is more likely, run"
        more = f"{expected} {test.episodes_needed:,} more episodes"
    return f"{decision} {percent_text(1 - test.margin)} of {lead}: it reaches {result} {facts}{more}."


def next_step(evaluation: Evaluation, run: Path) -> tuple[str, str] | None:
    """Return the next step for the best student, and its command; None if it keeps the lead or there is no lead.

    An undecided test continues as a group-sequential one, so that another analysis adds no risk of a false yes.
    """
    best = evaluation.best_student
    test = None if best is None else best[1].non_inferiority
    if test is None or test.decision == "yes":
        return None
    if test.decision == "undecided" and test.episodes_needed:
        noun = "episode" if test.episodes_needed == 1 else "episodes"
        total = evaluation.episodes + test.episodes_needed
        return (
            f"To decide it takes about {test.episodes_needed:,} more {noun} of each policy",
            f"rldistill evaluate {command_arguments(run)} --sequential --resume evaluate.max_episodes={total}",
        )
    return "To see why it falls short", f"rldistill why {shlex.quote(str(run))}"
