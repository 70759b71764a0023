"""A whole run, as plain data: what `rldistill run` chains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rldistill.core.errors import ConfigError
from rldistill.core.schedules import Constant, Linear, Schedule


@dataclass(frozen=True)
class Offline:
    """Collect once, distil once."""


@dataclass(frozen=True)
class Dagger:
    """`rounds` more times: collect, the student acting, and distil on all data so far (Ross 2011, arXiv 1011.0686).

    Attributes:
        rounds: after the first.
        steps_per_round: environment steps that each adds.
        beta: the probability that the teacher acts rather than the student, over these rounds; with 0, the default, the
            teacher acts in the first collection only.
        eval_episodes: by which the student of the best round is chosen, others than those that it is judged by at the
            end; with None, that of the last round is kept.
    """

    rounds: int = 1
    steps_per_round: int = 0
    beta: Schedule = Constant(0.0)
    eval_episodes: int | None = None

    def __post_init__(self) -> None:
        _require_rounds("dagger", self.rounds, self.steps_per_round)
        if self.eval_episodes is not None and self.eval_episodes < 1:
            raise ConfigError(f"recipe.eval_episodes: expected at least 1, found {self.eval_episodes}")


@dataclass(frozen=True)
class OnPolicy:
    """`rounds` more times: the student alone acts, and learns from its newest steps (Czarnecki 2019, arXiv 1902.02186).

    Attributes:
        rounds: after the first.
        steps_per_round: environment steps of each.
    """

    rounds: int = 1
    steps_per_round: int = 0

    def __post_init__(self) -> None:
        _require_rounds("on_policy", self.rounds, self.steps_per_round)


@dataclass(frozen=True)
class BornAgain:
    """Each student labels the data for the next one, `rounds` times, with new weights (Furlanello 2018, 1805.04770)."""

    rounds: int = 1


@dataclass(frozen=True)
class Ppd:
    """PPO with a distillation term, weighted with the clipped probability ratio (Spigler 2024, arXiv 2407.15134).

    Attributes:
        weight: lambda, over the course of training.
    """

    weight: Schedule = Constant(1.0)


@dataclass(frozen=True)
class Kickstart:
    """PPO with a distillation term that is weaned off (Schmitt 2018, arXiv 1803.03835).

    Attributes:
        weight: lambda, over the course of training.
        gate: `performance` further multiplies it with clip(1 - (G - G_random) / (G_teacher - G_random), 0, 1).
    """

    weight: Schedule = Linear(1.0, 0.0)
    gate: Literal["none", "performance"] = "none"


@dataclass(frozen=True)
class JumpStart:
    """PPO in whose episodes the teacher takes the first steps, ever fewer of them (Uchendu 2023, arXiv 2204.02372).

    Attributes:
        first_steps: how many, at the start.
        until: when there are none left, as a share of the training.
    """

    first_steps: int
    until: float = 0.7


@dataclass(frozen=True)
class Finetune:
    """Distil, then go on by PPO: the critic first, and the teacher weaned off only while the return holds.

    Attributes:
        weight: of the distillation losses, at the start.
        critic_warmup: steps in which the critic alone learns.
    """

    weight: Schedule = Constant(1.0)
    critic_warmup: int = 10_000


@dataclass(frozen=True)
class QDagger:
    """DQN that learns from the teacher's data first (Agarwal 2022, arXiv 2206.01626), then from these and its own.

    The distillation losses count with weight clip(1 - (G - G_random) / (G_teacher - G_random), 0, 1), G the mean
    return, from the 16th of the student's episodes on; wholly before.

    Attributes:
        weight: what that is multiplied with, over the course of training.
    """

    weight: Schedule = Constant(1.0)


@dataclass(frozen=True)
class Scratch:
    """PPO from reward alone: the control."""


AnyRecipe = Offline | Dagger | OnPolicy | BornAgain | Ppd | Kickstart | JumpStart | Finetune | QDagger | Scratch


RECIPES: dict[str, type[AnyRecipe]] = {
    "offline": Offline,
    "dagger": Dagger,
    "on_policy": OnPolicy,
    "born_again": BornAgain,
    "ppd": Ppd,
    "kickstart": Kickstart,
    "jump_start": JumpStart,
    "finetune": Finetune,
    "qdagger": QDagger,
    "scratch": Scratch,
}


FROM_REWARD_ALONE = (Ppd, Kickstart, JumpStart, Scratch)
"""Recipes that learn from their own steps and need no dataset."""


def _require_rounds(name: str, rounds: int, steps_per_round: int) -> None:
    if rounds < 1 or steps_per_round < 1:
        raise ConfigError(f"recipe: {name} needs rounds and steps_per_round of at least 1")
