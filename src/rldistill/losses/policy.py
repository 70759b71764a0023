"""Losses on what the policy does: distributions over actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from rldistill.errors import ConfigError
from rldistill.losses.functional import detached, gaussian_nll, kl, require_kind, require_same_space
from rldistill.types import ActionHead, Batch, PolicyOutput


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

    def __post_init__(self) -> None:
        _require_temperature(self.temperature)

    def __call__(self, student: PolicyOutput, batch: Batch) -> Tensor:
        """`[...]`, unreduced."""
        temperature = self.temperature or 1.0
        return kl(
            detached(batch.teacher), student, temperature, temperature if student.head.kind == "q_values" else 1.0
        )


@dataclass(frozen=True)
class ReverseKL:
    """KL(student || teacher), the teacher softened as in ForwardKL.

    Seeks the mode of what the teacher does. Czarnecki 2019, arXiv 1902.02186.
    """

    temperature: float | None = None
    student_head: ClassVar[str] = "any"

    def __post_init__(self) -> None:
        _require_temperature(self.temperature)

    def __call__(self, student: PolicyOutput, batch: Batch) -> Tensor:
        """`[...]`, unreduced."""
        temperature = self.temperature or 1.0
        return kl(
            student, detached(batch.teacher), temperature if student.head.kind == "q_values" else 1.0, temperature
        )


@dataclass(frozen=True)
class ActionNLL:
    """-log student(a* | s), a* the teacher's most likely action; (a - a*)^2 summed for deterministic students.

    Behavioural cloning of the teacher's greedy policy. Rusu 2015, arXiv 1511.06295, section 3.
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, batch: Batch) -> Tensor:
        """`[...]`, unreduced."""
        teacher, head = detached(batch.teacher), student.head
        _require_same_actions(teacher.head, head)
        action = teacher.mode()
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
        # A Gaussian is not clamped to the bounds, nor is a squashed one's mean behind its tanh.
        mean = teacher.params[..., : len(head.low)] if teacher.head.kind == head.kind else action
        return gaussian_nll(mean, student.params)


def _require_temperature(temperature: float | None) -> None:
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"temperature: expected a positive number or none, found {temperature}")


def _require_same_actions(teacher: ActionHead, student: ActionHead) -> None:
    if teacher.discrete or student.discrete:
        require_same_space("ActionNLL", teacher, student)
    elif student.kind == "squashed_gaussian":
        # An action at its bound has no finite place before tanh.
        require_kind("ActionNLL of a squashed_gaussian student", teacher, "squashed_gaussian")


def _cross_entropy(logits: Tensor, action: Tensor) -> Tensor:
    return -F.log_softmax(logits, -1).gather(-1, action[..., None]).squeeze(-1)
