"""Configuration of the search for the smallest student."""

from typing import Literal

from rldistill.core.fields import OpenFraction, Positive, Seed, validated_dataclass

Measure = Literal["parameters", "bytes", "macs", "latency"]

MIN_TRAINING_SEEDS = 3
"""Fewer training seeds say too little about the next one."""


@validated_dataclass
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
            medium size, or with `own` the first student of the run that is no tree.
    """

    margin: OpenFraction = 0.05
    by: Measure = "parameters"
    rounds: Positive = 2
    seeds: tuple[Seed, ...] | None = None
    episodes: Positive = 10
    own: bool = False
    behavior_policy: str | None = None

    def training_seeds(self, run_seeds: tuple[int, ...]) -> tuple[int, ...]:
        """Return the training seeds of the tested students."""
        more = [seed for seed in range(MIN_TRAINING_SEEDS) if seed not in run_seeds]
        return self.seeds or (*run_seeds, *more[: max(MIN_TRAINING_SEEDS - len(run_seeds), 0)])
