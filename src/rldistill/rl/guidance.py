"""Guidance by a teacher while a student learns from reward: losses, their weight, and the teacher's own steps."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Labels, PolicyOutput
from rldistill.core.schedules import Constant, Schedule
from rldistill.data.dataset import action_gap
from rldistill.losses import BellmanTarget
from rldistill.losses.objective import Term, default_temperature, unreduced, with_temperatures
from rldistill.losses.policy import kl, student_temperature

WARNING_DROP = 0.2
"""Drop of the return that causes a warning, as a share of the distance from random play to the teacher."""
GATE_DROP = 0.1
"""Drop of the return that restores the weight of an adaptive gate, as a share of the same distance."""
GATE_DECAY = 0.9
"""Factor of the weight at each update of an adaptive gate in which the return has not dropped."""
NUM_STD_ERRORS = 2.0
"""Standard errors of a mean return that may be chance."""
MIN_EPISODES = 16
"""Episodes that a mean return needs before it can change the weight."""


@dataclass(frozen=True)
class Guidance:
    """The teacher's part in learning from reward.

    Attributes:
        losses: distillation losses on the student's own states.
        weight: weight of these losses over the course of training.
        gate: `none`; `performance`, which multiplies the weight with
            clip(1 - (G - G_random) / (G_teacher - G_random), 0, 1), G the mean return of at least 16 of the student's
            episodes; or `adaptive`, which takes a tenth off the weight at each update, and restores it when the return
            drops.
        proximal: True if the losses are multiplied with `proximal_weight`.
        teacher_steps: number of first steps of each episode that the teacher takes, over the course of training.
        teacher_return: mean return of the teacher, for `gate` and as a reference in the metrics.
        random_return: mean return of random play.
        alpha: exponent of the confidence in peers, whose outputs are the labels (`rl.mutual`); None with a teacher.
    """

    losses: tuple[Term, ...] = ()
    weight: Schedule = Constant(1.0)
    gate: Literal["none", "performance", "adaptive"] = "none"
    proximal: bool = False
    teacher_steps: Schedule | None = None
    teacher_return: float | None = None
    random_return: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        if any(isinstance(term.loss, BellmanTarget) for term in self.losses):
            raise ConfigError(
                "distill.losses: bellman_target needs the teacher's output for next states, which learning from reward "
                "does not compute. Leave it out."
            )
        if self.teacher_return is None or self.random_return is None:
            if self.gate != "none":
                raise ConfigError(f"guidance.gate: {self.gate} needs teacher_return and random_return. Give both.")
        elif not self.teacher_return > self.random_return:
            problem = (
                f"the teacher's mean return ({self.teacher_return:.4g}) is not higher than random play "
                f"({self.random_return:.4g}), so there is nothing to distil"
            )
            if self.gate != "none":
                raise ConfigError(f"recipe.gate: {problem}. Use another teacher, or set gate: none.")
            warnings.warn(f"teacher: {problem}", stacklevel=3)

    @property
    def needs_teacher(self) -> bool:
        """True if the teacher labels states or takes steps."""
        return self.alpha is None and (bool(self.losses) or self.teacher_steps is not None)

    def num_teacher_steps(self, progress: float) -> int:
        """Return the number of first steps of an episode that the teacher takes, `progress` from 0 to 1."""
        return 0 if self.teacher_steps is None else round(self.teacher_steps(progress))


def proximal_weight(ratio: Tensor, clip_range: float) -> Tensor:
    """Return max(r, 1 - clip_range) without a gradient, r the probability ratio of the action taken."""
    # A divergence depends on the state and not on the action, so that its product with the gradient of r is noise of
    # mean zero, which drives Gaussian policies away from all that they do.
    return ratio.detach().clamp_min(1 - clip_range)


class TeacherLoss:
    """Distillation losses on the student's own states, with temperatures from the action gap of the teacher.

    Attributes:
        action_gap: mean difference of the teacher's best two Q values in its first labels; 1 for other heads.
        temperature: temperature of the column `teacher_kl`; None before the first labels.
        column: name of this column, `peer_kl` for the labels of peers.
    """

    def __init__(self, terms: tuple[Term, ...], head: ActionHead, column: str = "teacher_kl") -> None:
        self.terms, self.head, self.column = terms, head, column
        self.action_gap: float | None = None if head.action_values else 1.0
        self.temperature: float | None = None

    def measure(self, labels: Tensor) -> None:
        """Measure the action gap on labels `[..., P]`, and fill in the temperatures, once."""
        if self.temperature is None:
            if self.action_gap is None:
                self.action_gap = action_gap(labels.flatten(0, -2).cpu().numpy())
            gap = self.action_gap
            self.temperature = default_temperature(self.head, lambda: gap)
            self.terms = with_temperatures(self.terms, self.head, lambda: gap)

    def __call__(self, output: PolicyOutput, labels: Labels, progress: float) -> Tensor:
        """Return the weighted sum of the losses, unreduced."""
        return reduce(torch.add, [term.weight(progress) * unreduced(term, output, labels) for term in self.terms])

    def kl(self, output: PolicyOutput, labels: Tensor) -> dict[str, float]:
        """Return the column of KL(teacher || student), for any losses and any weight."""
        if not self.head.same_space(output.head):
            return {}
        assert self.temperature is not None
        own = student_temperature(output.head, self.temperature)
        return {self.column: float(kl(PolicyOutput(self.head, labels), output, self.temperature, own).mean())}


@dataclass
class DistillationWeight:
    """The weight of the distillation losses, which a gate changes with the student's returns.

    Attributes:
        share: factor of the gate.
        margin_of_error: `NUM_STD_ERRORS` standard errors of `best_return`.
        has_decreased: True once the weight has lost a tenth of its first value.
        has_warned: True once the return has dropped since then.
    """

    guidance: Guidance
    share: float = 1.0
    best_return: float | None = None
    margin_of_error: float = 0.0
    num_ended: int = 0
    has_decreased: bool = False
    has_warned: bool = False

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during training, by name."""
        return {name: value for name, value in vars(self).items() if name != "guidance"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        for name in self.state_dict():
            setattr(self, name, state[name])

    def weight(self, progress: float) -> float:
        """Return the weight at `progress` from 0 to 1."""
        return self.guidance.weight(progress) * self.share if self.guidance.losses else 0.0

    def update(self, returns: Sequence[float], num_ended: int, progress: float) -> str | None:
        """Update the gate with the latest of `num_ended` returns of training; return a warning if they have dropped.

        Scores of the greedy policy are not used: they measure something else, and are higher. The mean return and its
        best so far are compared with their standard errors, since a few long episodes scatter widely.
        """
        if not returns or num_ended == self.num_ended or not self.guidance.needs_teacher:
            return None
        self.num_ended = num_ended
        # By the weight in force until now: when the return drops, a gate restores it.
        initial, now = self.guidance.weight(0.0), self.weight(progress)
        if not self.guidance.losses:
            initial, now = (self.guidance.num_teacher_steps(at) for at in (0.0, progress))
        self.has_decreased = self.has_decreased or now < 0.9 * initial
        mean = float(np.mean(returns))
        if len(returns) < MIN_EPISODES:  # the shortest episodes end first, so their mean is biased, too
            return None
        margin = NUM_STD_ERRORS * float(np.std(returns, ddof=1)) / math.sqrt(len(returns))
        if self.guidance.gate == "performance":
            low, high = self.guidance.random_return, self.guidance.teacher_return
            assert low is not None
            assert high is not None
            self.share = float(np.clip(1 - (mean - low) / (high - low), 0, 1))
        if self.guidance.gate == "adaptive":
            self.share = 1.0 if self._has_dropped(mean + margin, GATE_DROP) else self.share * GATE_DECAY
        dropped, before = self._has_dropped(mean + margin, WARNING_DROP), self.best_return
        if self.best_return is None or mean - margin > self.best_return - self.margin_of_error:
            self.best_return, self.margin_of_error = mean, margin
        if self.has_warned or not self.has_decreased or not dropped:
            return None
        self.has_warned = True
        advice = "The gate restores it." if self.guidance.gate == "adaptive" else "Let the teacher count for longer."
        return (
            f"the student's mean return has fallen from {before:.4g} to {mean:.4g} since the teacher's weight "
            f"decreased; the best policy is kept. {advice}"
        )

    def _has_dropped(self, mean: float, share: float) -> bool:
        """Return True if `mean` is below the best return by more than a share of the distance to random play."""
        if self.best_return is None:
            return False
        best, worst = self.guidance.teacher_return, self.guidance.random_return
        distance = best - worst if best is not None and worst is not None and best > worst else abs(self.best_return)
        return self.best_return - self.margin_of_error - mean > share * distance
