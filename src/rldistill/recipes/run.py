"""A whole run, as plain data: what `rldistill run` chains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rldistill.collect import CollectConfig
from rldistill.distill import DistillConfig
from rldistill.envs.single import EnvConfig
from rldistill.errors import ConfigError
from rldistill.evaluate.returns import EvaluateConfig
from rldistill.progress import Report
from rldistill.schedules import Constant, Schedule
from rldistill.students import AnyStudent
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble
from rldistill.teachers.train import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """How collecting and distilling are chained.

    `offline` collects once and distils once. `dagger` (Ross 2011, arXiv 1011.0686) does so `rounds` more times, each on
    all data so far plus `steps_per_round` new steps in which the teacher acts with probability `beta` and the student
    otherwise; with 0, the default, the teacher acts in the first collection only. `on_policy` (Czarnecki 2019, arXiv
    1902.02186) lets the student alone act in these rounds and learns from the newest steps only. `born_again`
    (Furlanello 2018, arXiv 1805.04770) has each student label the data for the next one, `rounds` times, each with new
    weights.
    """

    name: Literal["offline", "dagger", "on_policy", "born_again"] = "offline"
    rounds: int = 1
    steps_per_round: int = 0
    beta: Schedule = Constant(0.0)

    def __post_init__(self) -> None:
        if self.name in ("dagger", "on_policy") and (self.rounds < 1 or self.steps_per_round < 1):
            raise ConfigError(f"recipe: {self.name} needs rounds and steps_per_round of at least 1")
        if self.name == "born_again" and self.rounds < 1:
            raise ConfigError("recipe: born_again needs rounds of at least 1")


def report_round(report: Report, number: int, rounds: int, done: int, total: int) -> None:
    """The progress of one of several equal rounds, as part of all of them."""
    report(number * total + done, rounds * total)


@dataclass(frozen=True)
class Run:
    """One run file, read and checked; `document` is what it said, overrides included.

    `verify` is whether a teacher from elsewhere is looked at before it teaches.
    """

    name: str
    folder: Path
    seed: int
    env: EnvConfig
    teacher: SavedTeacher | TeacherEnsemble | TrainConfig
    collect: CollectConfig
    recipe: Recipe
    distill: DistillConfig
    students: dict[str, AnyStudent]
    seeds: tuple[int, ...]
    evaluate: EvaluateConfig
    document: dict[str, Any]
    verify: bool = True
