"""Losses on what the policy does: distributions over actions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rldistill.core.batch import Labels
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import ILLEGAL, ActionHead
from rldistill.core.policy import PolicyOutput
from rldistill.losses.functional import (
    detached,
    kl,
    require_q_values,
    require_same_space,
    require_temperature,
    student_temperature,
)


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
        require_temperature(self.temperature)

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """`[...]`, unreduced."""
        temperature = self.temperature or 1.0
        return kl(detached(labels.teacher), student, temperature, student_temperature(student.head, temperature))


@dataclass(frozen=True)
class ReverseKL:
    """KL(student || teacher), the teacher softened as in ForwardKL.

    Seeks the mode of what the teacher does. Czarnecki 2019, arXiv 1902.02186.
    """

    temperature: float | None = None
    student_head: ClassVar[str] = "any"

    def __post_init__(self) -> None:
        require_temperature(self.temperature)

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """`[...]`, unreduced."""
        temperature = self.temperature or 1.0
        return kl(student, detached(labels.teacher), student_temperature(student.head, temperature), temperature)


@dataclass(frozen=True)
class Jeffreys:
    """KL(teacher || student) + KL(student || teacher), the teacher softened as in ForwardKL (Jeffreys 1946)."""

    temperature: float | None = None
    student_head: ClassVar[str] = "any"

    def __post_init__(self) -> None:
        require_temperature(self.temperature)

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """`[...]`, unreduced."""
        return ForwardKL(self.temperature)(student, labels) + ReverseKL(self.temperature)(student, labels)


@dataclass(frozen=True)
class Wasserstein:
    """W_2^2 between diagonal Gaussians: |mean_s - mean_t|^2 + |std_s - std_t|^2 (Olkin 1982); before tanh if squashed.

    Unlike a KL it stays small where a teacher is nearly deterministic.
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """`[...]`, unreduced."""
        teacher = detached(labels.teacher)
        require_same_space("Wasserstein", teacher.head, student.head)
        return student.head.wasserstein(teacher.params, student.params)


@dataclass(frozen=True)
class Entropy:
    """-H(student): a bonus for staying undecided (Williams 1991), which a positive weight lowers the loss by.

    sum_a p(a) log p(a), summed over the parts of an action; of a Gaussian, before tanh if squashed,
    -sum_i (log_std_i + (1 + log 2 pi) / 2). A student of Q values has none.
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """`[...]`, unreduced."""
        return -student.entropy()


@dataclass(frozen=True)
class GapWeightedNLL:
    """(max_a Q_t(s, a) - min_a Q_t(s, a)) * -log student(a* | s): what a mistake costs weighs what is learned.

    The weight is that of VIPER (Bastani 2018, arXiv 1805.08328), with V(s) = max_a Q(s, a).
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """`[...]`, unreduced."""
        require_q_values("GapWeightedNLL's teacher", labels.teacher.head)
        return self.weights(labels.teacher.params.detach()) * ActionNLL()(student, labels)

    @staticmethod
    def weights(q_values: Tensor) -> Tensor:
        """max_a Q(s, a) - min_a Q(s, a) over legal actions, `[...]`, given `[..., A]`."""
        lowest = q_values.masked_fill(q_values <= ILLEGAL / 2, torch.inf).amin(-1)
        return q_values.amax(-1) - lowest


@dataclass(frozen=True)
class AdvantageWeightedNLL:
    """min(exp(A / temperature), clip) * -log student(a | s), a the action that was taken.

    A = Q_t(s, a) - max_a' Q_t(s, a') for a teacher of Q values; else the return-to-go minus the teacher's value.
    Peng 2019, arXiv 1910.00177.

    Attributes:
        temperature: how much of an advantage is worth e times the weight; by default half the action gap of Q values,
            or the root mean square of returns-to-go less the teacher's values.
        clip: the largest weight.
    """

    temperature: float | None = None
    clip: float = 20.0
    student_head: ClassVar[str] = "any"

    def __post_init__(self) -> None:
        require_temperature(self.temperature)
        if not self.clip > 0:
            raise ConfigError(f"clip: expected a positive number, found {self.clip}")

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """`[...]`, unreduced."""
        require_same_space("AdvantageWeightedNLL", labels.teacher.head, student.head)
        if not student.head.single_choice:
            raise SpecMismatchError(
                f"AdvantageWeightedNLL: expected a head of categorical or q_values, found {student.head.kind}"
            )
        values = labels.teacher.params.detach()
        if labels.teacher.head.action_values:
            advantage = values.gather(-1, labels.action[..., None]).squeeze(-1) - values.amax(-1)
        elif labels.teacher.value is not None:
            advantage = labels.return_to_go - labels.teacher.value.detach()
        else:
            raise SpecMismatchError(
                "AdvantageWeightedNLL needs a teacher of Q values or with a value, and this one is categorical alone"
            )
        weight = (advantage / (self.temperature or 1.0)).clamp(max=math.log(self.clip)).exp()
        return weight * student.head.nll(student.params, labels.action)


@dataclass(frozen=True)
class ActionNLL:
    """-log student(a* | s), a* the teacher's most likely action; (a - a*)^2 summed for deterministic students.

    Behavioural cloning of the teacher's greedy policy. Rusu 2015, arXiv 1511.06295, section 3.
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """`[...]`, unreduced."""
        teacher, head = detached(labels.teacher), student.head
        _require_same_actions(teacher.head, head)
        # A Gaussian learns the teacher's mean before it is clamped or squashed.
        same = head.stochastic and type(teacher.head) is type(head)
        action = teacher.raw_mode() if same else teacher.mode()
        return head.nll(student.params, action)


def _require_same_actions(teacher: ActionHead, student: ActionHead) -> None:
    if teacher.discrete or student.discrete or len(teacher.low) != len(student.low):
        require_same_space("ActionNLL", teacher, student)
    elif student.kind == "squashed_gaussian" and teacher.kind != "squashed_gaussian":
        # tanh has no finite inverse for an action at its bound.
        raise SpecMismatchError(
            f"ActionNLL of a squashed_gaussian student: expected a squashed_gaussian teacher, found {teacher.kind}"
        )
