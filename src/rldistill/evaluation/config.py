"""Configuration of evaluation."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from rldistill.core.device import Device
from rldistill.core.errors import ConfigError
from rldistill.core.fields import (
    Fraction,
    FractionBelow1,
    NonNegative,
    NonNegativeFloat,
    OpenFraction,
    Positive,
    validated_dataclass,
)


@validated_dataclass
class RobustnessConfig:
    """Under what the policies play again, each perturbation alone.

    Attributes:
        episodes: full episodes for each policy, training seed and perturbation, the first of those without any.
        sticky: probability that an environment takes the action before once more; 0 leaves it out.
        noise: standard deviation of the noise on each number of an observation, as a share of that number's own while
            the teacher plays; 0 leaves it out.
        pixel_noise: the same on each pixel, as a share of 255.
        noop_max: an episode of ale-py's begins with up to so many no-ops; 0 leaves it out.
        physics: whether gravity, masses, forces and wind are changed, where the environment has such an attribute.
        env_kwargs: perturbations of your own: by name, keyword arguments of the environment.
    """

    episodes: Positive = 20
    sticky: FractionBelow1 = 0.5
    noise: NonNegativeFloat = 0.1
    pixel_noise: NonNegativeFloat = 0.05
    noop_max: NonNegative = 60
    physics: bool = True
    env_kwargs: dict[str, dict[str, Any]] = field(default_factory=dict, hash=False)


@validated_dataclass
class EvaluateConfig:
    """How the policies are compared.

    Attributes:
        episodes: full episodes for each policy and training seed; with `sequential`, before each look.
        sample: whether stochastic policies sample their actions.
        gamma: of the discounted return.
        videos: whether each student's best, median and worst episode are filmed, and its teacher in the same three.
        margin: the share of the teacher's lead over random play that a student may lose and still have kept it.
        sequential: whether to play on until every student is known to have kept it or not, with a look after every
            `episodes` under a group-sequential boundary, so that looking often makes no false yes more likely.
        max_episodes: for each policy and training seed, where it is played until decided.
        robustness: what else they play under, if anything.
        device: Device on which the policies compute; changes the speed, and results by rounding only.
    """

    episodes: Positive = 30
    sample: bool = False
    gamma: Fraction = 0.99
    videos: bool = True
    margin: OpenFraction = 0.05
    sequential: bool = False
    max_episodes: Positive = 300
    robustness: RobustnessConfig | None = None
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if self.sequential and self.max_episodes < self.episodes:
            raise ConfigError(
                f"max_episodes: expected at least evaluate.episodes, {self.episodes}, found {self.max_episodes}"
            )


@validated_dataclass
class CompareConfig:
    """How teachers are compared.

    Attributes:
        episodes: full episodes for each teacher and each probe student.
        steps: labelled steps that each probe student learns from.
        epochs: passes over them.
        ensemble: whether what an ensemble of all would give is measured, too.
    """

    episodes: Positive = 20
    steps: Positive = 5_000
    epochs: Positive = 20
    ensemble: bool = True
