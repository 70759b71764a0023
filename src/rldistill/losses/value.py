"""Losses on Q values, state values and the last hidden layer."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rldistill.core.errors import SpecMismatchError
from rldistill.core.fields import Fraction, PositiveFloat, validated_dataclass
from rldistill.core.policy import Labels, PolicyOutput
from rldistill.losses.policy import Loss, Softened, require_q_values, require_same_space, student_temperature


@validated_dataclass
class QMSE(Loss):
    """mean_a (Q_student(s, a) - Q_teacher(s, a))^2. Rusu 2015, arXiv 1511.06295, equation 1."""

    student_head = "q_values"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        _require_q_values("QMSE", student, labels)
        return ((student.params - labels.teacher.params.detach()) ** 2).mean(-1)


@validated_dataclass
class QHuber(Loss):
    """mean_a h(Q_student(s, a) - Q_teacher(s, a)), h quadratic up to `delta` and linear beyond (Huber 1964)."""

    delta: PositiveFloat = 1.0
    student_head = "q_values"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        _require_q_values("QHuber", student, labels)
        values = labels.teacher.params.detach()
        return F.huber_loss(student.params, values, reduction="none", delta=self.delta).mean(-1)


@validated_dataclass
class AdvantageMSE(Softened):
    """mean_a (tanh(A_student(s, a) / T) - tanh(A_teacher(s, a) / T))^2, A(s, a) = Q(s, a) - max_a' Q(s, a').

    The advantage counts up to the size of the temperature T. Thus no lost or won state outweighs the others, as in
    QMSE, and nearly equal actions count as nearly equal, unlike with hard labels. The logits of a `categorical` student
    are A / T. Meant for trees, which split by this loss and store the mean of A / T in their leaves; a network that is
    wrong and certain has almost no gradient, and needs forward_kl as well.
    """

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        require_q_values("AdvantageMSE's teacher", labels.teacher.head)
        require_same_space("AdvantageMSE", labels.teacher.head, student.head)
        temperature = self.temperature or 1.0
        advantages = bounded_advantages(student.params, student_temperature(student.head, temperature))
        return ((advantages - bounded_advantages(labels.teacher.params.detach(), temperature)) ** 2).mean(-1)


def bounded_advantages(values: Tensor, temperature: float) -> Tensor:
    """Return tanh((Q(s, a) - max_a' Q(s, a')) / temperature), from -1 to 0, `[..., A]`."""
    return ((values - values.amax(-1, keepdim=True)) / temperature).tanh()


@validated_dataclass
class BellmanTarget(Loss):
    """(Q_student(s, a) - (r + gamma * max_a' Q_teacher(s', a')))^2, with the recorded a and r.

    The target is r where the episode terminated; where it was truncated, s' is the last observation.
    """

    gamma: Fraction = 0.99
    student_head = "q_values"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        _require_q_values("BellmanTarget", student, labels)
        q_taken = student.params.gather(-1, labels.action[..., None]).squeeze(-1)
        return (q_taken - self.target(labels)) ** 2

    def target(self, labels: Labels) -> Tensor:
        """Return r + gamma * max_a' Q_teacher(s', a'), `[...]`."""
        bootstrap = labels.next_teacher.params.detach().amax(-1) * ~labels.terminated
        return labels.reward + self.gamma * bootstrap


@validated_dataclass
class LargeMargin(Loss):
    """max_a (Q_student(s, a) + margin * [a != a*]) - Q_student(s, a*), a* the teacher's best action.

    All other actions stay at least `margin` below the teacher's. Hester 2017 (DQfD), arXiv 1704.03732, equation 1.
    """

    margin: PositiveFloat = 0.8
    student_head = "q_values"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        require_same_space("LargeMargin", labels.teacher.head, student.head)
        require_q_values("LargeMargin's student", student.head)
        best = labels.teacher.params.detach().argmax(-1, keepdim=True)
        margins = torch.full_like(student.params, self.margin).scatter(-1, best, 0.0)
        return (student.params + margins).amax(-1) - student.params.gather(-1, best).squeeze(-1)


@validated_dataclass
class ValueMSE(Loss):
    """(V_student(s) - V_teacher(s))^2, V_teacher(s) = max_a Q_teacher(s, a) for a teacher of Q values.

    The student's value is a linear function of its last hidden layer, and is saved with it. This loss trains no policy:
    combine it with another. Schmitt 2018, arXiv 1803.03835.
    """

    student_head = "value"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        teacher = labels.teacher
        label = teacher.params.amax(-1) if teacher.head.action_values else teacher.value
        if label is None:
            raise SpecMismatchError(
                f"ValueMSE: expected a teacher with Q values or a value, found {teacher.head.kind} alone"
            )
        if student.value is None:
            raise SpecMismatchError("ValueMSE: expected a student with a value, found none")
        return (student.value - label.detach()) ** 2


@validated_dataclass
class FeatureMSE(Loss):
    """mean_f (W h_student(s) + b - h_teacher(s))^2, h the last hidden layer.

    W and b are trained with the student and not saved. This loss trains no policy: combine it with another. The dataset
    must contain the teacher's features (`collect.features`). Parisotto 2016 (Actor-Mimic), arXiv 1511.06342, eq. 4.
    """

    student_head = "features"

    def __call__(self, student: PolicyOutput, labels: Labels) -> Tensor:
        target = labels.teacher.features
        if target is None:
            raise SpecMismatchError(
                "FeatureMSE: the dataset has no features of the teacher. Collect it with collect.features=true."
            )
        if student.features is None or student.features.shape != target.shape:
            found = None if student.features is None else tuple(student.features.shape)
            raise SpecMismatchError(f"FeatureMSE: the student has features {found}, the teacher {tuple(target.shape)}")
        return ((student.features - target.detach()) ** 2).mean(-1)


def _require_q_values(loss: str, student: PolicyOutput, labels: Labels) -> None:
    require_q_values(f"{loss}'s teacher", labels.teacher.head)
    require_q_values(f"{loss}'s student", student.head)
    require_same_space(loss, labels.teacher.head, student.head)
