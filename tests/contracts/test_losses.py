"""Contract of every loss, for the pairs of heads that can fail differently."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import (
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    GaussianHead,
    MultiCategoricalHead,
    QValuesHead,
)
from rldistill.core.policy import Labels, PolicyOutput
from rldistill.losses import (
    LOSSES,
    AdvantageMSE,
    AdvantageWeightedNLL,
    AnyLoss,
    BellmanTarget,
    ForwardKL,
    Jeffreys,
    LargeMargin,
    QHuber,
    ReverseKL,
)

Q = QValuesHead((3,))
LOGITS = CategoricalHead((3,))
MULTI = MultiCategoricalHead((3, 2))
BITS = BernoulliHead((2,))
GAUSSIAN = GaussianHead(low=(-1.0, -2.0), high=(1.0, 2.0))
SQUASHED = GAUSSIAN.as_kind("squashed_gaussian")
DETERMINISTIC = GAUSSIAN.neutral
HEADS = [Q, LOGITS, MULTI, BITS, GAUSSIAN, SQUASHED, DETERMINISTIC]

Pairs = list[tuple[ActionHead, ActionHead]]
SAME: Pairs = [(head, head) for head in HEADS if head is not DETERMINISTIC]
DIVERGENCES: Pairs = [*SAME, (Q, LOGITS), (LOGITS, Q)]
CONTINUOUS: Pairs = [(head, DETERMINISTIC) for head in (DETERMINISTIC, GAUSSIAN, SQUASHED)]
CONTINUOUS += [(head, GAUSSIAN) for head in (DETERMINISTIC, SQUASHED)]
ALL: Pairs = [*product(HEADS, HEADS)]
# Teacher and student, all pairs that a loss accepts; the outputs have values and features.
ACCEPTED: dict[str, Pairs] = {
    "forward_kl": [*DIVERGENCES, (DETERMINISTIC, DETERMINISTIC)],
    "reverse_kl": DIVERGENCES,
    "jeffreys": DIVERGENCES,
    "wasserstein": [(GAUSSIAN, GAUSSIAN), (SQUASHED, SQUASHED)],
    "action_nll": [*DIVERGENCES, *CONTINUOUS],
    "gap_weighted_nll": [(Q, Q), (Q, LOGITS)],
    "advantage_weighted_nll": [(Q, Q), (Q, LOGITS), (LOGITS, LOGITS), (LOGITS, Q)],
    "entropy": [(teacher, student) for teacher, student in ALL if student.stochastic],
    "q_mse": [(Q, Q)],
    "q_huber": [(Q, Q)],
    "advantage_mse": [(Q, Q), (Q, LOGITS)],
    "bellman_target": [(Q, Q)],
    "large_margin": [(Q, Q), (LOGITS, Q)],
    "value_mse": ALL,
    "feature_mse": ALL,
}
# The pairs that run different code, where some of the accepted ones do not.
DIFFERENT: dict[str, Pairs] = {
    "jeffreys": [(Q, LOGITS)],  # the sum of forward_kl and reverse_kl
    "wasserstein": [(GAUSSIAN, GAUSSIAN)],
    "gap_weighted_nll": [(Q, LOGITS)],
    "advantage_weighted_nll": [(Q, LOGITS), (LOGITS, LOGITS)],
    "entropy": [(Q, student) for student in HEADS if student.stochastic],
    "value_mse": [(Q, LOGITS), (GAUSSIAN, GAUSSIAN)],
    "feature_mse": [(Q, LOGITS)],
}
CASES = [
    pytest.param(name, *pair, id=f"{name}-{pair[0].kind}-{pair[1].kind}")
    for name in ACCEPTED
    for pair in DIFFERENT.get(name, ACCEPTED[name])
]
BY_NAME = pytest.mark.parametrize("name", ACCEPTED)


def random_params(head: ActionHead, lead: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(*lead, head.num_params, generator=torch.Generator().manual_seed(seed))


def make_output(head: ActionHead, params: Tensor) -> PolicyOutput:
    """Return an output whose value and two features are functions of the params."""
    value = params.mean(-1)
    return PolicyOutput(head, params, value, torch.stack([value, 2 * value], -1))


def make_labels(teacher: PolicyOutput, next_params: Tensor | None = None) -> Labels:
    zeros = torch.zeros(teacher.params.shape[:-1])
    return Labels(
        teacher=teacher,
        next_teacher=PolicyOutput(teacher.head, teacher.params if next_params is None else next_params),
        action=zeros.long(),
        reward=zeros + 1,
        return_to_go=zeros,
        terminated=zeros.bool(),
    )


def loss_of(name: str, teacher: ActionHead, label: Tensor, student: ActionHead, params: Tensor) -> Tensor:
    return LOSSES[name]()(make_output(student, params), make_labels(make_output(teacher, label)))


@pytest.mark.parametrize(("name", "teacher", "student"), CASES)
class TestContract:
    def test_leading_dimensions_are_kept(self, name: str, teacher: ActionHead, student: ActionHead) -> None:
        for lead in ((5,), (3, 4)):
            label, params = random_params(teacher, lead, 1), random_params(student, lead)
            assert loss_of(name, teacher, label, student, params).shape == lead

    def test_extreme_outputs_have_finite_losses_and_gradients(
        self, name: str, teacher: ActionHead, student: ActionHead
    ) -> None:
        label, params = random_params(teacher, (6,), 1).sign() * 1e4, random_params(student, (6,)).sign() * 1e4
        for head, outputs in ((teacher, label), (student, params)):
            if isinstance(head, GaussianHead):
                outputs[:, len(head.low) :] = outputs[:, len(head.low) :].clamp(-5, 2)
        loss = loss_of(name, teacher, label, student, params.requires_grad_())
        (grad,) = torch.autograd.grad(loss.sum(), params)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(grad).all()

    def test_gradient_reaches_the_student_only(self, name: str, teacher: ActionHead, student: ActionHead) -> None:
        label, next_label = (random_params(teacher, (4,), seed).requires_grad_() for seed in (1, 2))
        params = random_params(student, (4,)).requires_grad_()
        labels = make_labels(make_output(teacher, label), next_label)
        LOSSES[name]()(make_output(student, params), labels).sum().backward()  # type: ignore[no-untyped-call]
        assert params.grad is not None
        assert params.grad.abs().sum() > 0
        assert label.grad is None
        assert next_label.grad is None

    def test_each_transition_has_its_own_loss(self, name: str, teacher: ActionHead, student: ActionHead) -> None:
        label, params = random_params(teacher, (4,), 1), random_params(student, (4,))
        whole = loss_of(name, teacher, label, student, params)
        rows = [loss_of(name, teacher, label[i : i + 1], student, params[i : i + 1]) for i in range(4)]
        torch.testing.assert_close(whole, torch.cat(rows))
        sequence = loss_of(name, teacher, label.view(2, 2, -1), student, params.view(2, 2, -1))
        torch.testing.assert_close(sequence, whole.view(2, 2))


def test_every_loss_is_under_contract() -> None:
    assert ACCEPTED.keys() == LOSSES.keys()
    assert {loss.student_head for loss in LOSSES.values()} == {"any", "q_values", "value", "features"}


@BY_NAME
def test_only_heads_that_fit_are_accepted(name: str) -> None:
    accepted = []
    for teacher, student in ALL:
        try:
            loss_of(name, teacher, random_params(teacher, (2,)), student, random_params(student, (2,)))
            accepted.append((teacher, student))
        except SpecMismatchError as error:
            assert teacher.kind in str(error) or student.kind in str(error)  # noqa: PT017
    assert sorted(accepted, key=str) == sorted(ACCEPTED[name], key=str)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        pytest.param(name, head, id=f"{name}-{head.kind}")
        for name, head in product(ACCEPTED, [Q, GAUSSIAN, DETERMINISTIC])
        if (head, head) in ACCEPTED[name] and name not in ("entropy", "value_mse", "feature_mse")
    ],
)
def test_other_numbers_of_actions_are_refused_not_broadcast(name: str, head: ActionHead) -> None:
    smaller = QValuesHead((1,)) if head is Q else type(head)(low=(-1.0,), high=(1.0,))
    for teacher, student in ((head, smaller), (smaller, head)):
        with pytest.raises(SpecMismatchError, match=head.kind):
            loss_of(name, teacher, random_params(teacher, (2,)), student, random_params(student, (2,)))


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "q_mse", "q_huber", "advantage_mse", "wasserstein"])
def test_comparisons_are_zero_at_equality_and_positive_elsewhere(name: str) -> None:
    for head, _ in (pair for pair in ACCEPTED[name] if pair[0] is pair[1]):
        label, params = random_params(head, (50,), 1), random_params(head, (50,))
        assert loss_of(name, head, label, head, label).abs().max() < 1e-5
        assert loss_of(name, head, label, head, params).min() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda loss=loss: loss(temperature=0.0), "temperature") for loss in (ForwardKL, ReverseKL, Jeffreys)),
        *((lambda loss=loss: loss(temperature=-1.0), "temperature") for loss in (AdvantageMSE, AdvantageWeightedNLL)),
        (lambda: ForwardKL(temperature=math.nan), "temperature"),
        (lambda: QHuber(delta=0.0), "delta"),
        (lambda: LargeMargin(margin=0.0), "margin"),
        (lambda: AdvantageWeightedNLL(clip=0.0), "clip"),
        (lambda: AdvantageWeightedNLL(clip=math.nan), "clip"),
        (lambda: BellmanTarget(gamma=1.5), "gamma"),
        (lambda: BellmanTarget(gamma=-0.1), "gamma"),
    ],
)
def test_invalid_numbers_are_refused(make: Callable[[], AnyLoss], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"\.{message}: found .*, expected "):
        make()


def test_limits_of_numbers_are_accepted() -> None:
    assert BellmanTarget(gamma=0.0).gamma == 0
    assert BellmanTarget(gamma=1.0).gamma == 1
    assert ForwardKL(temperature=None).temperature is None
