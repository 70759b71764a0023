"""Labels of a teacher, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs


@dataclass(frozen=True)
class Labels:
    """Data that losses compare a student with; leading dimensions `[B]`, or `[T, B]` for sequences.

    Attributes:
        teacher: the teacher's output for the observation.
        next_teacher: its output for the next observation; the last one of an episode that ended.
        action: the recorded action.
        reward: the reward of that action.
        return_to_go: the discounted return from there.
        terminated: booleans; a truncated episode did not terminate.
    """

    teacher: PolicyOutput
    next_teacher: PolicyOutput
    action: Tensor
    reward: Tensor
    return_to_go: Tensor
    terminated: Tensor


@dataclass(frozen=True)
class Batch(Labels):
    """Labelled observations, and the weight of each in the mean loss."""

    obs: Obs
    weight: Tensor
