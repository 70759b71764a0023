"""Batches of labelled transitions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs


@dataclass(frozen=True)
class Batch:
    """Transitions with the teacher's labels; leading dimensions `[B]`, or `[T, B]` for sequences."""

    obs: Obs
    action: Tensor
    reward: Tensor
    return_to_go: Tensor
    terminated: Tensor
    truncated: Tensor
    teacher: PolicyOutput
    next_teacher: PolicyOutput
    next_obs: Obs | None
    weight: Tensor
    episode: Tensor
    step: Tensor
    actor: Tensor
    task: Tensor
