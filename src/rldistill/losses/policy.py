"""Losses on what the policy does: distributions over actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from rldistill.losses.functional import gaussian_nll, kl
from rldistill.types import Batch, PolicyOutput


@dataclass(frozen=True)
class ForwardKL:
    """KL(teacher || student), the teacher softened: softmax(params / temperature).

    Covers all that the teacher might do. Rusu 2015, arXiv 1511.06295. A `categorical` student learns the softened
    distribution itself; a `q_values` student is softened like its teacher.

    Attributes:
        temperature: of the teacher; None is 1 for logits, and for Q values is measured from their action gap.
    """

    temperature: float | None = None
    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, batch: Batch) -> Tensor:
        """`[...]`, unreduced."""
        temperature = self.temperature or 1.0
        return kl(batch.teacher, student, temperature, temperature if student.head.kind == "q_values" else 1.0)


@dataclass(frozen=True)
class ReverseKL:
    """KL(student || teacher), the teacher softened as in ForwardKL.

    Seeks the mode of what the teacher does. Czarnecki 2019, arXiv 1902.02186.
    """

    temperature: float | None = None
    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, batch: Batch) -> Tensor:
        """`[...]`, unreduced."""
        temperature = self.temperature or 1.0
        return kl(student, batch.teacher, temperature if student.head.kind == "q_values" else 1.0, temperature)


@dataclass(frozen=True)
class ActionNLL:
    """-log student(a* | s), a* the teacher's most likely action; (a - a*)^2 summed for deterministic students.

    Behavioural cloning of the teacher's greedy policy. Rusu 2015, arXiv 1511.06295, section 3.
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, batch: Batch) -> Tensor:
        """`[...]`, unreduced."""
        action, head = batch.teacher.mode(), student.head
        if head.kind == "multi_categorical":
            parts = zip(student.params.split_with_sizes(head.nvec, -1), action.unbind(-1), strict=True)
            total: Tensor = sum(_cross_entropy(logits, chosen) for logits, chosen in parts)  # type: ignore[assignment]
            return total
        if head.kind == "bernoulli":
            return F.binary_cross_entropy_with_logits(student.params, action.float(), reduction="none").sum(-1)
        if head.discrete:
            return _cross_entropy(student.params, action)
        if head.kind == "deterministic":
            return ((student.params - action) ** 2).sum(-1)
        return gaussian_nll(batch.teacher.params[..., : len(head.low)], student.params)


def _cross_entropy(logits: Tensor, action: Tensor) -> Tensor:
    return -F.log_softmax(logits, -1).gather(-1, action[..., None]).squeeze(-1)
