"""Losses on distributions over actions."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from rldistill.core.errors import SpecMismatchError
from rldistill.core.fields import PositiveFloat, validated_dataclass
from rldistill.core.heads import ILLEGAL, ActionHead, GaussianHead
from rldistill.core.policy import Labels, PolicyOutput
from rldistill.losses.functional import (
    Softened,
    detached,
    kl,
    require_q_values,
    require_same_space,
    student_temperature,
)


@validated_dataclass
class ForwardKL(Softened):
    """KL(teacher || student), the teacher softened: softmax(params / temperature).

    Covers all actions of the teacher. Rusu 2015, arXiv 1511.06295. A `categorical` student learns the softened
    distribution itself; a `q_values` student is softened like its teacher.
    """

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss, `[...]`."""
        temperature = self.temperature or 1.0
        return kl(detached(labels.teacher), student, temperature, student_temperature(student.head, temperature))


@validated_dataclass
class ReverseKL(Softened):
    """KL(student || teacher), the teacher softened as in ForwardKL.

    Seeks a mode of the teacher. Czarnecki 2019, arXiv 1902.02186.
    """

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss, `[...]`."""
        temperature = self.temperature or 1.0
        return kl(student, detached(labels.teacher), student_temperature(student.head, temperature), temperature)


@validated_dataclass
class Jeffreys(Softened):
    """KL(teacher || student) + KL(student || teacher), the teacher softened as in ForwardKL (Jeffreys 1946)."""

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss, `[...]`."""
        return ForwardKL(self.temperature)(student, labels) + ReverseKL(self.temperature)(student, labels)


@validated_dataclass
class Wasserstein:
    """W_2^2 between diagonal Gaussians: |mean_s - mean_t|^2 + |std_s - std_t|^2 (Olkin 1982); before tanh if squashed.

    Unlike a KL divergence it stays small for a nearly deterministic teacher.
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss, `[...]`."""
        require_same_space("Wasserstein", labels.teacher.head, student.head)
        if not isinstance(student.head, GaussianHead):
            raise SpecMismatchError(f"Wasserstein: expected a Gaussian head, found {student.head.kind}")
        (mean_t, log_std_t), (mean_s, log_std_s) = (
            labels.teacher.params.detach().chunk(2, -1),
            student.params.chunk(2, -1),
        )
        return ((mean_s - mean_t) ** 2 + (log_std_s.exp() - log_std_t.exp()) ** 2).sum(-1)


@validated_dataclass
class Entropy:
    """-H(student), a bonus for exploration (Williams 1991): sum_a p(a) log p(a), summed over the parts of an action.

    For a Gaussian, -sum_i (log_std_i + (1 + log 2 pi) / 2), before tanh if squashed. Q values have no entropy.
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss, `[...]`."""
        return -student.entropy()


@validated_dataclass
class GapWeightedNLL:
    """(max_a Q_t(s, a) - min_a Q_t(s, a)) * -log student(a* | s): the cost of a mistake is the weight of a state.

    The weight is that of VIPER (Bastani 2018, arXiv 1805.08328), with V(s) = max_a Q(s, a).
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss, `[...]`."""
        require_q_values("GapWeightedNLL's teacher", labels.teacher.head)
        return self.weights(labels.teacher.params.detach()) * ActionNLL()(student, labels)

    @staticmethod
    def weights(q_values: Tensor) -> Tensor:
        """Return max_a Q(s, a) - min_a Q(s, a) over legal actions, `[...]`, given `[..., A]`."""
        lowest = q_values.masked_fill(q_values <= ILLEGAL / 2, torch.inf).amin(-1)
        return q_values.amax(-1) - lowest


@validated_dataclass
class AdvantageWeightedNLL:
    """min(exp(A / temperature), clip) * -log student(a | s), a the recorded action. Peng 2019, arXiv 1910.00177.

    A = Q_t(s, a) - max_a' Q_t(s, a') for a teacher of Q values; else the return-to-go minus the teacher's value.

    Attributes:
        temperature: the advantage that multiplies the weight by e; None is half the action gap of Q values, or the root
            mean square of returns-to-go minus the teacher's values.
        clip: the largest weight.
    """

    temperature: PositiveFloat | None = None
    clip: PositiveFloat = 20.0
    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss, `[...]`."""
        teacher = labels.teacher
        require_same_space("AdvantageWeightedNLL", teacher.head, student.head)
        if not student.head.single_choice:
            raise SpecMismatchError(
                f"AdvantageWeightedNLL: expected a head of categorical or q_values, found {student.head.kind}"
            )
        if teacher.head.action_values:
            values = teacher.params.detach()
            advantage = values.gather(-1, labels.action[..., None]).squeeze(-1) - values.amax(-1)
        elif teacher.value is not None:
            advantage = labels.return_to_go - teacher.value.detach()
        else:
            raise SpecMismatchError(
                f"AdvantageWeightedNLL: expected a teacher with Q values or a value, found {teacher.head.kind} alone"
            )
        weight = (advantage / (self.temperature or 1.0)).clamp(max=math.log(self.clip)).exp()
        return weight * student.head.nll(student.params, labels.action)


@validated_dataclass
class ActionNLL:
    """-log student(a* | s), a* the teacher's most likely action; (a - a*)^2 summed for deterministic students.

    Behavioral cloning of the greedy teacher. Rusu 2015, arXiv 1511.06295, section 3.
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss, `[...]`."""
        teacher, head = detached(labels.teacher), student.head
        _require_same_actions(teacher.head, head)
        if isinstance(head, GaussianHead) and type(head) is type(teacher.head):
            # It learns the teacher's mean before that is clamped or squashed.
            return head.nll(student.params, head.raw_mode(teacher.params))
        return head.nll(student.params, teacher.mode())


def _require_same_actions(teacher: ActionHead, student: ActionHead) -> None:
    if teacher.discrete or student.discrete or len(teacher.low) != len(student.low):
        require_same_space("ActionNLL", teacher, student)
    elif student.kind == "squashed_gaussian" and teacher.kind != "squashed_gaussian":
        # tanh has no finite inverse for an action at its bound.
        raise SpecMismatchError(
            f"ActionNLL of a squashed_gaussian student: expected a squashed_gaussian teacher, found {teacher.kind}"
        )
