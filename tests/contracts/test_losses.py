"""What every loss keeps, for every pair of heads that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rldistill.core.batch import Labels
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import (
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    GaussianHead,
    MultiCategoricalHead,
    QValuesHead,
)
from rldistill.core.policy import PolicyOutput
from rldistill.losses import (
    LOSSES,
    ActionNLL,
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

SAME = [(head, head) for head in (LOGITS, Q, MULTI, BITS, GAUSSIAN, SQUASHED)]
CHOICES = [*SAME, (Q, LOGITS), (LOGITS, Q)]
ACTIONS = [(DETERMINISTIC, DETERMINISTIC), (GAUSSIAN, DETERMINISTIC), (SQUASHED, DETERMINISTIC)]
SPREAD = [(DETERMINISTIC, GAUSSIAN), (SQUASHED, GAUSSIAN)]
FITS: dict[str, list[tuple[ActionHead, ActionHead]]] = {
    "forward_kl": CHOICES,
    "reverse_kl": CHOICES,
    "jeffreys": CHOICES,
    "wasserstein": [(GAUSSIAN, GAUSSIAN), (SQUASHED, SQUASHED)],
    "action_nll": [*CHOICES, *ACTIONS, *SPREAD],
    "gap_weighted_nll": [(Q, Q), (Q, LOGITS)],
    "advantage_weighted_nll": [(Q, Q), (Q, LOGITS)],
    "entropy": [(teacher, head) for teacher in HEADS for head in (LOGITS, MULTI, BITS, GAUSSIAN, SQUASHED)],
    "q_mse": [(Q, Q)],
    "q_huber": [(Q, Q)],
    "advantage_mse": [(Q, Q), (Q, LOGITS)],
    "bellman_target": [(Q, Q)],
    "large_margin": [(Q, Q), (LOGITS, Q)],
    "value_mse": [(teacher, student) for teacher in HEADS for student in HEADS],
    "feature_mse": [(teacher, student) for teacher in HEADS for student in HEADS],
}
OF_ACTIONS = [name for name in FITS if name not in ("value_mse", "feature_mse")]
CASES = [pytest.param(name, *pair, id=f"{name}-{pair[0].kind}-{pair[1].kind}") for name in FITS for pair in FITS[name]]
REFUSED = [
    pytest.param(name, a, b, id=f"{name}-{a.kind}-{b.kind}")
    for name in FITS
    for a in HEADS
    for b in HEADS
    if (a, b) not in FITS[name]
]


def random_params(head: ActionHead, lead: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(*lead, head.num_params, generator=torch.Generator().manual_seed(seed))


def said(head: ActionHead, params: Tensor) -> PolicyOutput:
    """With a value and two features, which are functions of the params."""
    value = params.mean(-1)
    return PolicyOutput(head, params, value, torch.stack([value, 2 * value], -1))


def make_batch(teacher: PolicyOutput, next_params: Tensor | None = None) -> Labels:
    lead = teacher.params.shape[:-1]
    zeros, whole = torch.zeros(lead), torch.zeros(lead, dtype=torch.int64)
    following = PolicyOutput(teacher.head, teacher.params if next_params is None else next_params)
    return Labels(
        action=whole,
        reward=zeros + 1,
        return_to_go=zeros,
        terminated=zeros.bool(),
        teacher=teacher,
        next_teacher=following,
    )


def test_every_loss_is_under_contract() -> None:
    assert FITS.keys() == LOSSES.keys()


@pytest.mark.parametrize(("name", "teacher", "student"), CASES)
class TestContract:
    @pytest.mark.parametrize("lead", [(5,), (3, 4)], ids=["B", "TB"])
    def test_leading_dimensions_are_kept(
        self, name: str, teacher: ActionHead, student: ActionHead, lead: tuple[int, ...]
    ) -> None:
        batch = make_batch(said(teacher, random_params(teacher, lead, 1)))
        assert LOSSES[name]()(said(student, random_params(student, lead)), batch).shape == lead

    def test_extreme_outputs_cost_much_but_not_infinitely(
        self, name: str, teacher: ActionHead, student: ActionHead
    ) -> None:
        label, params = random_params(teacher, (6,), 1).sign() * 1e4, random_params(student, (6,)).sign() * 1e4
        for head, outputs in ((teacher, label), (student, params)):
            if "gaussian" in head.kind:
                outputs[:, len(head.low) :] = outputs[:, len(head.low) :].clamp(-5, 2)
        params.requires_grad_()
        loss = LOSSES[name]()(said(student, params), make_batch(said(teacher, label)))
        (grad,) = torch.autograd.grad(loss.sum(), params)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(grad).all()

    def test_the_gradient_reaches_the_student_and_never_the_teacher(
        self, name: str, teacher: ActionHead, student: ActionHead
    ) -> None:
        label, following = (random_params(teacher, (4,), seed).requires_grad_() for seed in (1, 2))
        params = random_params(student, (4,)).requires_grad_()
        loss = LOSSES[name]()(said(student, params), make_batch(said(teacher, label), following))
        loss.sum().backward()  # type: ignore[no-untyped-call]
        assert params.grad is not None
        assert params.grad.abs().sum() > 0
        assert label.grad is None
        assert following.grad is None

    def test_duplicating_the_batch_changes_nothing(self, name: str, teacher: ActionHead, student: ActionHead) -> None:
        label, params = random_params(teacher, (4,), 1), random_params(student, (4,))
        once = LOSSES[name]()(said(student, params), make_batch(said(teacher, label)))
        twice = LOSSES[name]()(said(student, params.repeat(2, 1)), make_batch(said(teacher, label.repeat(2, 1))))
        torch.testing.assert_close(twice, once.repeat(2))


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jeffreys"])
@pytest.mark.parametrize("head", [head for head, _ in SAME], ids=lambda head: head.kind)
def test_a_divergence_is_zero_at_equality_and_positive_elsewhere(name: str, head: ActionHead) -> None:
    label, params = random_params(head, (50,), 1), random_params(head, (50,))
    batch = make_batch(PolicyOutput(head, label))
    assert LOSSES[name]()(PolicyOutput(head, label), batch).abs().max() < 1e-5
    assert LOSSES[name]()(PolicyOutput(head, params), batch).min() > 0


@pytest.mark.parametrize(("name", "teacher", "student"), REFUSED)
def test_heads_that_do_not_fit_are_refused(name: str, teacher: ActionHead, student: ActionHead) -> None:
    batch = make_batch(PolicyOutput(teacher, random_params(teacher, (2,))))
    with pytest.raises(SpecMismatchError, match=f"{teacher.kind}|{student.kind}"):
        LOSSES[name]()(PolicyOutput(student, random_params(student, (2,))), batch)


@pytest.mark.parametrize("name", OF_ACTIONS)
def test_another_number_of_actions_is_refused_not_broadcast(name: str) -> None:
    batch = make_batch(PolicyOutput(Q, torch.zeros(2, 3)))
    with pytest.raises(SpecMismatchError):
        LOSSES[name]()(PolicyOutput(QValuesHead((1,)), torch.zeros(2, 1)), batch)


def test_the_divergence_of_bits_by_hand() -> None:
    # p = sigmoid(ln 3, 0) = (3/4, 1/2), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) for the first bit, 0 for the second
    batch = make_batch(PolicyOutput(BITS, torch.tensor([[math.log(3), 0.0]])))
    loss = ForwardKL()(PolicyOutput(BITS, torch.zeros(1, 2)), batch)
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


def test_a_multi_categorical_divergence_is_the_sum_over_its_parts() -> None:
    # First part: p = softmax(ln 2, 0, 0) = (1/2, 1/4, 1/4), q = 1/3 each: 1/2 ln(3/2) + 2 * 1/4 ln(3/4). Second: equal.
    batch = make_batch(PolicyOutput(MULTI, torch.tensor([[math.log(2), 0.0, 0.0, 1.0, 1.0]])))
    loss = ForwardKL()(PolicyOutput(MULTI, torch.zeros(1, 5)), batch)
    assert loss.item() == pytest.approx(0.5 * math.log(1.5) + 0.5 * math.log(0.75), abs=1e-6)


def test_a_gaussian_divergence_survives_spreads_whose_squares_vanish() -> None:
    # e^-60 squared is 0 in float32; the ratio of equal spreads is 1 all the same
    params = torch.tensor([[0.0, 0.0, -60.0, -60.0]])
    assert ForwardKL()(PolicyOutput(GAUSSIAN, params), make_batch(PolicyOutput(GAUSSIAN, params))).item() == 0


def test_a_gaussian_student_learns_the_action_of_a_squashed_teacher() -> None:
    # Action of the teacher: (1 * tanh(9), 2 * tanh(-9)) = (1, -2) nearly; N(a; a, 1): 2 * 1/2 ln(2 pi)
    batch = make_batch(PolicyOutput(SQUASHED, torch.tensor([[9.0, -9.0, 0.0, 0.0]])))
    loss = ActionNLL()(PolicyOutput(GAUSSIAN, torch.tensor([[1.0, -2.0, 0.0, 0.0]])), batch)
    assert loss.item() == pytest.approx(math.log(2 * math.pi), abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForwardKL(temperature=0.0), "temperature"),
        (lambda: ReverseKL(temperature=-1.0), "temperature"),
        (lambda: ForwardKL(temperature=math.nan), "temperature"),
        (lambda: QHuber(delta=0.0), "delta"),
        (lambda: LargeMargin(margin=0.0), "margin"),
        (lambda: AdvantageWeightedNLL(temperature=0.0), "temperature"),
        (lambda: AdvantageWeightedNLL(clip=math.nan), "clip"),
        (lambda: Jeffreys(temperature=0.0), "temperature"),
        (lambda: AdvantageMSE(temperature=0.0), "temperature"),
        (lambda: BellmanTarget(gamma=1.5), "gamma"),
    ],
)
def test_numbers_that_cannot_be_are_refused(make: Callable[[], AnyLoss], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("name", ["q_mse", "q_huber"])
def test_equal_values_cost_nothing(name: str) -> None:
    params = random_params(Q, (6,))
    assert LOSSES[name]()(PolicyOutput(Q, params), make_batch(PolicyOutput(Q, params))).abs().max() == 0
