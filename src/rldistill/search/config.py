"""Configuration of the search for the smallest student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rldistill.core.errors import ConfigError

Measure = Literal["parameters", "bytes", "macs", "latency"]

MIN_TRAINING_SEEDS = 3
"""Fewer training seeds say too little about the next one."""


@dataclass(frozen=True)
class SearchConfig:
    """Settings of the search for the smallest student.

    Attributes:
        margin: fraction of the teacher's lead over random play that the student may lose.
        by: size that is minimized.
        rounds: rounds of DAgger for the shared dataset, unless the recipe of the run is `dagger`.
        seeds: training seeds of the tested students; by default those of the run, and at least three.
        episodes: episodes of each student in the first rung.
        own: True to try the students of the run only.
        behavior_policy: name of the student of the run that acts in the rounds of DAgger; by default a network of
            medium size.
    """

    margin: float = 0.05
    by: Measure = "parameters"
    rounds: int = 2
    seeds: tuple[int, ...] | None = None
    episodes: int = 10
    own: bool = False
    behavior_policy: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise ConfigError(f"margin: expected a fraction such as 0.05 (--margin 5%), found {self.margin:.4g}")

    def training_seeds(self, run_seeds: tuple[int, ...]) -> tuple[int, ...]:
        """Return the training seeds of the tested students."""
        more = [seed for seed in range(MIN_TRAINING_SEEDS) if seed not in run_seeds]
        return self.seeds or (*run_seeds, *more[: max(MIN_TRAINING_SEEDS - len(run_seeds), 0)])
