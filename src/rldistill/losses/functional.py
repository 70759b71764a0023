"""Functions and fields that several losses share."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from rldistill.core.errors import SpecMismatchError
from rldistill.core.fields import PositiveFloat, validated_dataclass
from rldistill.core.heads import ActionHead
from rldistill.core.policy import PolicyOutput


@validated_dataclass
class Softened:
    """Losses that divide the teacher's params by a temperature.

    Attributes:
        temperature: None is 1 for logits, and half the action gap for Q values.
    """

    temperature: PositiveFloat | None = None
    student_head: ClassVar[str] = "any"


def kl(p: PolicyOutput, q: PolicyOutput, temperature_p: float = 1.0, temperature_q: float = 1.0) -> Tensor:
    """Return KL(p || q) of two policies, `[...]`; the params of discrete heads are divided by the temperatures.

    Raises:
        SpecMismatchError: the policies act in different spaces, or have no distribution.
    """
    require_same_space("KL", p.head, q.head)
    if not p.head.discrete:
        return p.head.kl(p.params, q.params)
    return p.head.kl(_softened(p.params, temperature_p), _softened(q.params, temperature_q))


def _softened(params: Tensor, temperature: float) -> Tensor:
    return params if temperature == 1 else params / temperature


def student_temperature(head: ActionHead, temperature: float) -> float:
    """Return the temperature of a student: 1 for logits, which learn the teacher's softened distribution itself."""
    return temperature if head.action_values else 1.0


def detached(teacher: PolicyOutput) -> PolicyOutput:
    """Return the teacher's output as a constant."""
    return dataclasses.replace(teacher, params=teacher.params.detach()) if teacher.params.requires_grad else teacher


def require_same_space(loss: str, a: ActionHead, b: ActionHead) -> None:
    """Raise SpecMismatchError unless both heads are distributions over the same actions."""
    if not a.same_space(b):
        sizes = [head.nvec if head.discrete else (len(head.low),) for head in (a, b)]
        raise SpecMismatchError(f"{loss}: cannot compare {a.kind} {sizes[0]} with {b.kind} {sizes[1]}")


def require_q_values(side: str, head: ActionHead) -> None:
    """Raise SpecMismatchError unless the head has Q values; `side` names the loss and the policy."""
    if not head.action_values:
        raise SpecMismatchError(f"{side}: expected a head of q_values, found {head.kind}")
