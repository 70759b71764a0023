"""Losses on distributions over actions, and the base class and checks of all losses."""

import dataclasses
import math
from typing import ClassVar, Protocol

from torch import Tensor, inf

from rldistill.core.errors import SpecMismatchError
from rldistill.core.fields import PositiveFloat, validated_dataclass
from rldistill.core.heads import ILLEGAL, NO_NOISE_LOG_STD, ActionHead, DeterministicHead, GaussianHead
from rldistill.core.policy import Labels, PolicyOutput


class Loss(Protocol):
    """Base class of losses, which are frozen dataclasses; a class of your own need not inherit from it.

    Attributes:
        student_head: part of the student that the loss needs: `any`, `q_values`, `value` or `features`.
    """

    student_head: ClassVar[str] = "any"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        """Return the loss of each transition, `[...]`."""
        raise NotImplementedError


@validated_dataclass
class Softened(Loss):
    """Losses that divide the teacher's params by a temperature.

    Attributes:
        temperature: None is 1 for logits, and half the action gap for Q values.
    """

    temperature: PositiveFloat | None = None


def kl(p: PolicyOutput, q: PolicyOutput, temperature_p: float = 1.0, temperature_q: float = 1.0) -> Tensor:
    """Return KL(p || q) of two policies, `[...]`; the params of discrete heads are divided by the temperatures.

    Raises:
        SpecMismatchError: the policies act in different spaces, or have no distribution.
    """
    require_same_space("KL", p.head, q.head)
    if not p.head.discrete:
        return p.head.kl(p.params, q.params)
    pairs = ((p.params, temperature_p), (q.params, temperature_q))
    # No division by 1, which would take time in each step of a small student.
    return p.head.kl(*(params if temperature == 1 else params / temperature for params, temperature in pairs))


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


@validated_dataclass
class ForwardKL(Softened):
    """KL(teacher || student), the teacher softened: softmax(params / temperature).

    Covers all actions of the teacher. Rusu 2015, arXiv 1511.06295. A `categorical` student learns the softened
    distribution itself; a `q_values` student is softened like its teacher. Where a KL would be infinite, it is a
    distance: Wasserstein for Gaussians without noise (TD3, DDPG), the squared error for deterministic teachers.
    """

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        head = labels.teacher.head
        if isinstance(head, GaussianHead | DeterministicHead) and head.same_space(student.head):
            if isinstance(head, DeterministicHead):
                return head.nll(student.params, labels.teacher.params.detach())
            if bool((labels.teacher.params.chunk(2, -1)[1] <= NO_NOISE_LOG_STD).all()):
                return Wasserstein()(student, labels)
        temperature = self.temperature or 1.0
        return kl(detached(labels.teacher), student, temperature, student_temperature(student.head, temperature))


@validated_dataclass
class ReverseKL(Softened):
    """KL(student || teacher), the teacher softened as in ForwardKL.

    Seeks a mode of the teacher. Czarnecki 2019, arXiv 1902.02186.
    """

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        temperature = self.temperature or 1.0
        return kl(student, detached(labels.teacher), student_temperature(student.head, temperature), temperature)


@validated_dataclass
class Jeffreys(Softened):
    """KL(teacher || student) + KL(student || teacher), the teacher softened as in ForwardKL (Jeffreys 1946)."""

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        return ForwardKL(self.temperature)(student, labels) + ReverseKL(self.temperature)(student, labels)


@validated_dataclass
class Wasserstein(Loss):
    """W_2^2 between diagonal Gaussians: |mean_s - mean_t|^2 + |std_s - std_t|^2 (Olkin 1982); before tanh if squashed.

    Unlike a KL divergence it stays small for a nearly deterministic teacher.
    """

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        require_same_space("Wasserstein", labels.teacher.head, student.head)
        if not isinstance(student.head, GaussianHead):
            raise SpecMismatchError(f"Wasserstein: expected a Gaussian head, found {student.head.kind}")
        mean_t, log_std_t = labels.teacher.params.detach().chunk(2, -1)
        mean_s, log_std_s = student.params.chunk(2, -1)
        return ((mean_s - mean_t) ** 2 + (log_std_s.exp() - log_std_t.exp()) ** 2).sum(-1)


@validated_dataclass
class Entropy(Loss):
    """-H(student), a bonus for exploration (Williams 1991): sum_a p(a) log p(a), summed over the parts of an action.

    For a Gaussian, -sum_i (log_std_i + (1 + log 2 pi) / 2), before tanh if squashed. Q values have no entropy.
    """

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        return -student.entropy()


@validated_dataclass
class GapWeightedNLL(Loss):
    """(max_a Q_t(s, a) - min_a Q_t(s, a)) * -log student(a* | s): the cost of a mistake is the weight of a state.

    The weight is that of VIPER (Bastani 2018, arXiv 1805.08328), with V(s) = max_a Q(s, a).
    """

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        require_q_values("GapWeightedNLL's teacher", labels.teacher.head)
        return self.weights(labels.teacher.params.detach()) * ActionNLL()(student, labels)

    @staticmethod
    def weights(q_values: Tensor) -> Tensor:
        """Return max_a Q(s, a) - min_a Q(s, a) over legal actions, `[...]`, given `[..., A]`."""
        lowest = q_values.masked_fill(q_values <= ILLEGAL / 2, inf).amin(-1)
        return q_values.amax(-1) - lowest


@validated_dataclass
class AdvantageWeightedNLL(Loss):
    """min(exp(A / temperature), clip) * -log student(a | s), a the recorded action. Peng 2019, arXiv 1910.00177.

    A = Q_t(s, a) - max_a' Q_t(s, a') for a teacher of Q values; else the return-to-go minus the teacher's value.

    Attributes:
        temperature: the advantage that multiplies the weight by e; None is half the action gap of Q values, or the root
            mean square of returns-to-go minus the teacher's values.
        clip: the largest weight.
    """

    temperature: PositiveFloat | None = None
    clip: PositiveFloat = 20.0

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
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
class ActionNLL(Loss):
    """-log student(a* | s), a* the teacher's most likely action; (a - a*)^2 summed for deterministic students.

    Behavioral cloning of the greedy teacher. Rusu 2015, arXiv 1511.06295, section 3.
    """

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        teacher, head = detached(labels.teacher), student.head
        if head.discrete or teacher.head.discrete or len(head.low) != len(teacher.head.low):
            require_same_space("ActionNLL", teacher.head, head)
        elif head.kind == "squashed_gaussian" and teacher.head.kind != "squashed_gaussian":
            # tanh has no finite inverse for an action at its bound.
            raise SpecMismatchError(
                "ActionNLL of a squashed_gaussian student: expected a squashed_gaussian teacher, found "
                f"{teacher.head.kind}"
            )
        if isinstance(head, GaussianHead) and type(head) is type(teacher.head):
            # It learns the teacher's mean before that is clamped or squashed.
            return head.nll(student.params, head.raw_mode(teacher.params))
        return head.nll(student.params, teacher.mode())
