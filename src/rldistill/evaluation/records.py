"""Typed results that are read from and written as JSON, and the parts of `evaluation.json`."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rldistill.evaluation.non_inferiority import NonInferiorityResult
from rldistill.evaluation.statistics import Interval


class Record(BaseModel):
    """Part of a result."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return self.model_dump(mode="json")


class Result(Record):
    """Result that prints as tables and lines of text."""

    def blocks(self) -> Sequence[Table | str]:
        """Return the tables and lines in order."""
        raise NotImplementedError

    def __rich__(self) -> Group:

        return Group(*(Text(block) if isinstance(block, str) else block for block in self.blocks()))

    def __str__(self) -> str:

        console = Console(file=io.StringIO(), width=shutil.get_terminal_size((120, 24)).columns, record=True)
        console.print(self)
        return "\n".join(line.rstrip() for line in console.export_text().splitlines())

    __repr__ = __str__


class RunReturns(Record):
    """Returns of one policy, episode by episode."""

    training_seed: int | None
    returns: list[float]


class Estimate(Record):
    """Estimate with its 95% interval."""

    estimate: float
    ci95: Interval | None


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
        distinct_episodes: number of episodes that differ in actions or return.
        distinct_runs: number of training seeds whose returns differ.
        agreement, action_rmse: agreement with the teacher on the student's own states.
        probability_of_improvement: probability of a higher return than the teacher's in the same episode.
    """

    kind: Literal["teacher", "student", "random"]
    runs: list[RunReturns]
    distinct_episodes: int
    distinct_runs: int
    mean: float
    ci95: Interval
    median: float
    median_ci95: Interval | None
    iqm: float
    iqm_ci95: Interval | None
    normalized: float | None
    normalized_ci95: Interval | None
    optimality_gap: float | None
    optimality_gap_ci95: Interval | None
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
    latency_us: dict[str, float] | None
    batch_latency_us: dict[str, dict[str, float]] | None
    env_steps: int
    non_inferiority: NonInferiorityResult | None
    fidelity: Fidelity | None

    @property
    def returns(self) -> list[float]:
        """Returns of all runs."""
        return [value for run in self.runs for value in run.returns]


class Efficiency(Record):
    """Normalized score against environment steps, and the first step at which each percentage was reached."""

    curve: list[tuple[float, float]]
    to: dict[str, int | None]


class PerturbedReturns(Record):
    """Returns of one policy under one perturbation; `lost` is the mean without it minus the mean with it."""

    mean: float
    ci95: Interval
    normalized: float | None
    lost: float


class Robustness(Record):
    """Results by perturbation and policy, and the reason for each perturbation that was left out."""

    episodes: int
    perturbations: dict[str, dict[str, PerturbedReturns]]
    left_out: dict[str, str]


class Doubt(Record):
    """Warning about an evaluation."""

    name: str
    text: str
