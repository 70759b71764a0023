"""What of the teacher counts while a student learns from reward: how much, and for how long."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.schedules import Constant, Schedule
from rldistill.losses import BellmanTarget
from rldistill.losses.objective import Term

FALL = 0.2
"""By what share of its distance from random play a student has to fall after weaning began for a warning."""
SLACK = 0.1
"""By what share of that distance the return may fall while the weight is taken back."""
PATIENT = 0.9
"""What the weight is multiplied with at each update in which the return holds."""
SURE = 2.0
"""So many standard errors a return may seem to fall by chance, and may have seemed to rise."""
LEAST = 16
"""Episodes of which fewer say too little of either."""


@dataclass(frozen=True)
class Guidance:
    """The teacher's part in learning from reward.

    Attributes:
        losses: distillation losses on the student's own states; none without a teacher.
        weight: what they are weighted with over the course of training.
        gate: `none`; `performance`, by which the weight is further multiplied with
            clip(1 - (G - G_random) / (G_teacher - G_random), 0, 1), G the mean return of at least 16 of the student's
            episodes; or `holding`, by which it loses a tenth at each update while the return holds, and is restored
            where it falls.
        proximal: whether a loss counts with `proximal_weight`.
        teacher_steps: how many first steps of each episode the teacher takes, over the course of training.
        teacher_return, random_return: what `gate` compares with, and what the student's return is seen beside.
    """

    losses: tuple[Term, ...] = ()
    weight: Schedule = Constant(1.0)
    gate: Literal["none", "performance", "adaptive"] = "none"
    proximal: bool = False
    teacher_steps: Schedule | None = None
    teacher_return: float | None = None
    random_return: float | None = None

    def __post_init__(self) -> None:
        for term in self.losses:
            if isinstance(term.loss, BellmanTarget):
                raise ConfigError(
                    "distill.losses: bellman_target needs what the teacher says of next states, which it is not asked "
                    "in learning from reward; leave it out"
                )
        if min(self.weight(0.0), self.weight(1.0)) < 0:
            raise ConfigError("recipe.weight: expected no negative number")
        if self.teacher_return is None or self.random_return is None:
            if self.gate != "none":
                raise ConfigError(f"guidance.gate: {self.gate} needs the teacher's return and that of random play")
        elif not self.teacher_return > self.random_return:
            poor = (
                f"the teacher's return of {self.teacher_return:.4g} is no better than random play's "
                f"{self.random_return:.4g}"
            )
            if self.gate != "none":
                raise ConfigError(f"guidance.gate: it can never open: {poor}")
            warnings.warn(f"{poor}: there is nothing to be learned from it", stacklevel=3)

    @property
    def needs_teacher(self) -> bool:
        """Whether there is anything for a teacher to do."""
        return bool(self.losses) or self.teacher_steps is not None

    @property
    def ends(self) -> dict[str, float]:
        """What a student's return stands beside in its metrics: those that are known."""
        ends = {"teacher_return": self.teacher_return, "random_return": self.random_return}
        return {name: value for name, value in ends.items() if value is not None}

    def steps_of_teacher(self, done: float) -> int:
        """How many first steps of an episode the teacher takes at this point of the training."""
        return 0 if self.teacher_steps is None else round(self.teacher_steps(done))


def proximal_weight(ratio: Tensor, clip_range: float) -> Tensor:
    """max(r, 1 - clip_range), r the probability ratio of the action taken, as a number without a gradient.

    A divergence is one of states, whatever was done in them, so that its product with the gradient of r is noise of
    mean zero, which drives Gaussian policies away from all that they do.
    """
    return ratio.detach().clamp_min(1 - clip_range)


class DistillationWeight:
    """The weight of the distillation losses as training goes on."""

    def __init__(self, guidance: Guidance) -> None:
        self.guidance = guidance
        self.share = 1.0
        self.best_return: float | None = None
        self.margin_of_error = 0.0
        self.ended = 0
        self.began = self.warned = False

    def numbers(self) -> list[float]:
        """What it takes to stand here again."""
        best_return = math.nan if self.best_return is None else self.best_return
        return [self.share, best_return, self.margin_of_error, self.ended, self.began, self.warned]

    def load_state_dict(self, numbers: Sequence[float]) -> None:
        """Stand where it stood."""
        self.share, best_return, self.margin_of_error, ended, began, warned = numbers
        self.best_return = None if math.isnan(best_return) else best_return
        self.ended, self.began, self.warned = int(ended), bool(began), bool(warned)

    def weight(self, done: float) -> float:
        """The weight at this point of the training."""
        return self.guidance.weight(done) * self.share if self.guidance.losses else 0.0

    def update(self, returns: Sequence[float], ended: int, done: float) -> list[str]:
        """Take up the returns of its last episodes while it learned; returns what is to be warned of.

        Not now and then the score of its best guesses: that is another measure, and higher. A few long episodes say
        little, so what was held and what it is compared with are both taken with their standard errors; where none has
        ended since the last time, nothing new is known.

        Args:
            returns: of its last episodes.
            ended: how many there have been in all.
            done: how far along the training is, from 0 to 1.
        """
        if not returns or ended == self.ended or not self.guidance.needs_teacher:
            return []
        self.ended = ended
        # Of what was in force until now: where the return falls, a gate takes it back.
        self.began = self.began or self._weaned(done)
        score = float(np.mean(returns))
        if len(returns) < LEAST:  # of which, besides, the shortest end first
            return []
        if self.guidance.gate == "performance":
            self.share = float(np.clip(1 - self._progress(score), 0, 1))
        margin_of_error = SURE * float(np.std(returns, ddof=1)) / math.sqrt(len(returns))
        if self.guidance.gate == "adaptive":
            self.share = 1.0 if self._fell(score + margin_of_error, SLACK) else self.share * PATIENT
        fell, before = self._fell(score + margin_of_error, FALL), self.best_return
        if self.best_return is None or score - margin_of_error > self.best_return - self.margin_of_error:
            self.best_return, self.margin_of_error = score, margin_of_error
        if self.warned or not self.began or not fell:
            return []
        self.warned = True
        now = "it counts wholly again" if self.guidance.gate == "adaptive" else "let it count for longer"
        return [
            f"the student's return has fallen from {before:.4g} to {score:.4g} since the teacher was weaned off; the "
            f"best policy is kept. Of the teacher: {now}"
        ]

    def _weaned(self, done: float) -> bool:
        """Whether a tenth is gone of the weight of the teacher's losses, or where it has none, of its own steps."""
        guidance = self.guidance
        if not guidance.losses:
            return guidance.steps_of_teacher(done) < 0.9 * guidance.steps_of_teacher(0.0)
        return self.weight(done) < 0.9 * guidance.weight(0.0)

    def _fell(self, score: float, share: float) -> bool:
        """Whether a return lies by more than a share of the way from random play to the teacher below what was held."""
        if self.best_return is None:
            return False
        best, worst = self.guidance.teacher_return, self.guidance.random_return
        whole = best - worst if best is not None and worst is not None and best > worst else abs(self.best_return)
        return self.best_return - self.margin_of_error - score > share * whole

    def _progress(self, score: float) -> float:
        """0 for random play, 1 for the teacher."""
        low, high = self.guidance.random_return, self.guidance.teacher_return
        assert low is not None
        assert high is not None
        return (score - low) / (high - low)
