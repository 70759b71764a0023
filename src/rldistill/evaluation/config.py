"""Configuration of evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rldistill.core.device import Device
from rldistill.core.errors import ConfigError


@dataclass(frozen=True)
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

    episodes: int = 30
    sample: bool = False
    gamma: float = 0.99
    videos: bool = True
    margin: float = 0.05
    sequential: bool = False
    max_episodes: int = 300
    robustness: RobustnessConfig | None = None
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"evaluate.episodes: expected at least 1, found {self.episodes}")
        if not 0 < self.margin < 1:
            raise ConfigError(f"evaluate.margin: expected a share between 0 and 1, such as 0.05, found {self.margin}")
        if self.sequential and self.max_episodes < self.episodes:
            least = f"evaluate.episodes, {self.episodes}"
            raise ConfigError(f"evaluate.max_episodes: expected at least {least}, found {self.max_episodes}")


@dataclass(frozen=True)
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

    episodes: int = 20
    sticky: float = 0.5
    noise: float = 0.1
    pixel_noise: float = 0.05
    noop_max: int = 60
    physics: bool = True
    env_kwargs: dict[str, dict[str, Any]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"evaluate.robustness.episodes: expected at least 1, found {self.episodes}")
        if not 0 <= self.sticky < 1:
            raise ConfigError(f"evaluate.robustness.sticky: expected a number from 0 to below 1, found {self.sticky}")
        for name in ("noise", "pixel_noise", "noop_max"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"evaluate.robustness.{name}: expected at least 0, found {getattr(self, name)}")


@dataclass(frozen=True)
class CompareConfig:
    """How teachers are compared.

    Attributes:
        episodes: full episodes for each teacher and each probe student.
        steps: labelled steps that each probe student learns from.
        epochs: passes over them.
        ensemble: whether what an ensemble of all would give is measured, too.
    """

    episodes: int = 20
    steps: int = 5_000
    epochs: int = 20
    ensemble: bool = True

    def __post_init__(self) -> None:
        for name in ("episodes", "steps", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")
