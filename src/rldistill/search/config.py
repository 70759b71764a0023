"""Configuration of the search for the smallest student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rldistill.core.errors import ConfigError
from rldistill.recipes.job import Run

Measure = Literal["parameters", "bytes", "macs", "latency"]


FEWEST = 3
"""Training seeds of which fewer say nothing of the next one."""


@dataclass(frozen=True)
class SearchConfig:
    """What is looked for.

    Attributes:
        margin: the share of the teacher's lead over random play that the student may lose.
        by: what is to be small.
        rounds: of DAgger, in which one student acts for all; a run file whose recipe is `dagger` says it itself.
        seeds: training seeds of those that are tested; None is the run file's, and so many more that there are three.
        episodes: of a student in the first rung.
        own: whether the students of the run file are tried alone.
    """

    margin: float = 0.05
    by: Measure = "parameters"
    rounds: int = 2
    seeds: tuple[int, ...] | None = None
    episodes: int = 10
    own: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise ConfigError(f"--margin: expected a share such as 5%, found {self.margin:.4g}")

    def seeds_of(self, run: Run) -> tuple[int, ...]:
        """The training seeds that a test is about."""
        others = [seed for seed in range(FEWEST) if seed not in run.seeds]
        return self.seeds or (*run.seeds, *others[: max(FEWEST - len(run.seeds), 0)])
