"""Losses against numbers worked out by hand; the contract that all of them keep is in contracts/."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from rldistill.core.errors import SpecMismatchError
from rldistill.core.heads import (
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    GaussianHead,
    HeadKind,
    MultiCategoricalHead,
    QValuesHead,
    SquashedGaussianHead,
)
from rldistill.core.policy import Labels, PolicyOutput
from rldistill.losses import (
    QMSE,
    ActionNLL,
    AdvantageMSE,
    AdvantageWeightedNLL,
    BellmanTarget,
    Entropy,
    FeatureMSE,
    ForwardKL,
    GapWeightedNLL,
    Jeffreys,
    LargeMargin,
    QHuber,
    ReverseKL,
    ValueMSE,
    Wasserstein,
)

Q = QValuesHead((2,))
LOGITS = CategoricalHead((2,))


def make_labels(params: Tensor, head: ActionHead = Q, terminated: bool = False) -> Labels:
    lead = params.shape[:-1]
    zeros = torch.zeros(lead)
    return Labels(
        action=torch.zeros(lead, dtype=torch.int64),
        reward=zeros + 2.0,
        return_to_go=zeros,
        terminated=torch.full(lead, terminated),
        teacher=PolicyOutput(head, params),
        next_teacher=PolicyOutput(head, params + 1),
    )


# The teacher's values (2 ln 3, 0) at temperature 2 are p = (3/4, 1/4). The student's numbers (0, 2 ln 2) are
# q = (1/5, 4/5) as logits, and q = (1/3, 2/3) as values at temperature 2, that is (0, ln 2).
VALUES, NUMBERS = torch.tensor([[2 * math.log(3), 0.0]]), torch.tensor([[0.0, 2 * math.log(2)]])


@pytest.mark.parametrize(("head", "q"), [(LOGITS, (1 / 5, 4 / 5)), (Q, (1 / 3, 2 / 3))], ids=["logits", "values"])
def test_kl_softens_the_teacher_and_a_student_of_values_by_hand(head: ActionHead, q: tuple[float, ...]) -> None:
    p, student, labels = (3 / 4, 1 / 4), PolicyOutput(head, NUMBERS), make_labels(VALUES)
    forward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    reverse = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert ForwardKL(temperature=2.0)(student, labels).item() == pytest.approx(forward, abs=1e-6)
    assert ReverseKL(temperature=2.0)(student, labels).item() == pytest.approx(reverse, abs=1e-6)
    assert Jeffreys(temperature=2.0)(student, labels).item() == pytest.approx(forward + reverse, abs=1e-6)


def test_kl_without_a_temperature_softens_nothing() -> None:
    # p = softmax(2 ln 3, 0) = (9/10, 1/10), q = (1/5, 4/5)
    loss = ForwardKL()(PolicyOutput(LOGITS, NUMBERS), make_labels(VALUES, LOGITS))
    assert loss.item() == pytest.approx(0.9 * math.log(4.5) + 0.1 * math.log(1 / 8), abs=1e-6)


def test_gaussian_kl_ignores_the_temperature() -> None:
    head = GaussianHead(low=(-9.0,), high=(9.0,))
    labels, student = make_labels(torch.tensor([[1.0, 0.0]]), head), PolicyOutput(head, torch.tensor([[0.0, 1.0]]))
    assert torch.equal(ForwardKL(temperature=5.0)(student, labels), ForwardKL()(student, labels))


def test_gaussian_kl_by_hand() -> None:
    # N(1, 1) to N(0, e): log(e) + (1 + 1) / (2 e^2) - 1/2
    head = GaussianHead(low=(-9.0,), high=(9.0,))
    labels = make_labels(torch.tensor([[1.0, 0.0]]), head)
    student = PolicyOutput(head, torch.tensor([[0.0, 1.0]]))
    assert ForwardKL()(student, labels).item() == pytest.approx(1 + 2 / (2 * math.e**2) - 0.5, abs=1e-6)


def test_divergences_of_different_spaces_name_both() -> None:
    labels = make_labels(torch.zeros(1, 4), GaussianHead(low=(-9.0,) * 2, high=(9.0,) * 2))
    with pytest.raises(SpecMismatchError, match=r"KL: cannot compare gaussian \(2,\) with categorical \(3,\)"):
        ForwardKL()(PolicyOutput(CategoricalHead((3,)), torch.zeros(1, 3)), labels)


def test_action_nll_by_hand() -> None:
    # the teacher's best action is 1; the student gives it e^1 / (e^0 + e^1)
    labels = make_labels(torch.tensor([[0.0, 5.0]]))
    student = PolicyOutput(LOGITS, torch.tensor([[0.0, 1.0]]))
    assert ActionNLL()(student, labels).item() == pytest.approx(-math.log(math.e / (1 + math.e)), abs=1e-6)


# The first bound is 1; the teacher's mean 3 lies outside, and N(3; 2, e^(1/2)) has density
# exp(-(1 / e) / 2) / (e^(1/2) sqrt(2 pi)). The second entry is -1 for both, with a standard deviation of 1.
UNBOUNDED = (1 / math.e) / 2 + 1 / 2 + math.log(2 * math.pi)


@pytest.mark.parametrize("kind", ["gaussian", "squashed_gaussian"])
def test_action_nll_of_gaussians_takes_the_mean_before_its_bounds_by_hand(kind: HeadKind) -> None:
    head = GaussianHead(low=(-1.0, -2.0), high=(1.0, 2.0)).as_kind(kind)
    labels = make_labels(torch.tensor([[3.0, -1.0, 0.3, -0.7]]), head)
    student = PolicyOutput(head, torch.tensor([[2.0, -1.0, 0.5, 0.0]]))
    assert ActionNLL()(student, labels).item() == pytest.approx(UNBOUNDED, abs=1e-6)


def test_action_nll_of_other_continuous_heads_takes_the_bounded_action_by_hand() -> None:
    low, high = (-1.0, -2.0), (1.0, 2.0)
    gaussian, box = GaussianHead(low=low, high=high), DeterministicHead(low=low, high=high)
    squashed = SquashedGaussianHead(low=low, high=high)
    # Action of the teacher: (tanh(9), 2 tanh(-9)) = (1, -2) nearly; -log N(a; a, 1) = log(2 pi) / 2 for each entry
    labels = make_labels(torch.tensor([[9.0, -9.0, 0.0, 0.0]]), squashed)
    student = PolicyOutput(gaussian, torch.tensor([[1.0, -2.0, 0.0, 0.0]]))
    assert ActionNLL()(student, labels).item() == pytest.approx(math.log(2 * math.pi), abs=1e-6)
    # Clamped to (1, -2): (3 - 1)^2 + (-5 + 2)^2, although the means of teacher and student are equal
    means = torch.tensor([[3.0, -5.0]])
    for labels in (make_labels(means, box), make_labels(torch.cat([means, means], 1), gaussian)):
        assert ActionNLL()(PolicyOutput(box, means), labels).item() == 13


def test_q_losses_by_hand() -> None:
    labels = make_labels(torch.tensor([[1.0, 2.0]]))
    student = PolicyOutput(Q, torch.tensor([[1.5, 5.0]]))
    assert QMSE()(student, labels).item() == pytest.approx((0.5**2 + 3**2) / 2)
    assert QHuber()(student, labels).item() == pytest.approx((0.5 * 0.5**2 + (3 - 0.5)) / 2)
    assert QHuber(delta=2.0)(student, labels).item() == pytest.approx((0.5 * 0.5**2 + 2 * (3 - 1)) / 2)


@pytest.mark.parametrize(("terminated", "target"), [(True, 2.0), (False, 2 + 0.9 * 3)])
def test_bellman_target_bootstraps_at_truncation_only(terminated: bool, target: float) -> None:
    # r = 2, max_a' Q_teacher(s', a') = 3, Q_student(s, 0) = 1.5
    labels = make_labels(torch.tensor([[1.0, 2.0]]), terminated=terminated)
    student = PolicyOutput(Q, torch.tensor([[1.5, 5.0]]))
    assert BellmanTarget(gamma=0.9)(student, labels).item() == pytest.approx((1.5 - target) ** 2, rel=1e-6)
    target = 2.0 if terminated else 2 + 0.99 * 3
    assert BellmanTarget()(student, labels).item() == pytest.approx((1.5 - target) ** 2, rel=1e-6)


def test_wasserstein_by_hand() -> None:
    # means (1, -2, 3) and (0, 0, 0): 1 + 4 + 9; standard deviations (1, 1, 1) and (2, 3, 1): 1 + 4 + 0
    head = GaussianHead(low=(-9.0,) * 3, high=(9.0,) * 3)
    labels = make_labels(torch.tensor([[1.0, -2.0, 3.0, 0.0, 0.0, 0.0]]), head)
    student = PolicyOutput(head, torch.tensor([[0.0, 0.0, 0.0, math.log(2), math.log(3), 0.0]]))
    assert Wasserstein()(student, labels).item() == pytest.approx(19.0, abs=1e-5)


def test_entropy_by_hand() -> None:
    labels = make_labels(torch.zeros(1, 2))
    # (3/4, 1/4): -(3/4 ln(3/4) + 1/4 ln(1/4)) = ln 4 - 3/4 ln 3
    quarters = math.log(4) - 0.75 * math.log(3)
    logits = torch.tensor([[math.log(3), 0.0]])
    assert Entropy()(PolicyOutput(LOGITS, logits), labels).item() == pytest.approx(-quarters, abs=1e-6)
    bits = PolicyOutput(BernoulliHead((2,)), logits)  # a bit of 3/4, and a fair one
    assert Entropy()(bits, labels).item() == pytest.approx(-quarters - math.log(2), abs=1e-6)
    several = PolicyOutput(MultiCategoricalHead((2, 2)), torch.tensor([[math.log(3), 0.0, 5.0, 5.0]]))
    assert Entropy()(several, labels).item() == pytest.approx(-quarters - math.log(2), abs=1e-6)
    # N(0, e): 1 + 1/2 ln(2 pi e)
    spread = PolicyOutput(GaussianHead(low=(-9.0,), high=(9.0,)), torch.tensor([[7.0, 1.0]]))
    assert Entropy()(spread, labels).item() == pytest.approx(-1 - 0.5 * math.log(2 * math.pi * math.e), abs=1e-6)


def test_gap_weighted_nll_by_hand() -> None:
    # The gap is 5 - (-1), and the student gives the best action 1/2.
    labels = make_labels(torch.tensor([[-1.0, 5.0]]))
    loss = GapWeightedNLL()(PolicyOutput(LOGITS, torch.zeros(1, 2)), labels)
    assert loss.item() == pytest.approx(6 * math.log(2), abs=1e-6)


def test_gap_excludes_illegal_actions() -> None:
    head = QValuesHead((3,))
    labels = make_labels(torch.tensor([[-1.0, 5.0, -1e8]]), head)
    loss = GapWeightedNLL()(PolicyOutput(CategoricalHead((3,)), torch.zeros(1, 3)), labels)
    assert loss.item() == pytest.approx(6 * math.log(3), abs=1e-5)


def test_advantage_mse_by_hand() -> None:
    # The teacher's second action costs 2, which is one temperature; what is illegal costs all there is, 1.
    head = QValuesHead((3,))
    labels = make_labels(torch.tensor([[5.0, 3.0, -1e8]]), head)
    loss = AdvantageMSE(temperature=2.0)
    undecided = PolicyOutput(CategoricalHead((3,)), torch.full((1, 3), 7.0))
    assert loss(undecided, labels).item() == pytest.approx((math.tanh(1) ** 2 + 1) / 3, abs=1e-6)
    # At temperature 1 the second action costs tanh(2).
    assert AdvantageMSE()(undecided, labels).item() == pytest.approx((math.tanh(2) ** 2 + 1) / 3, abs=1e-6)
    # Values count by what they differ, and are divided as the teacher's are; logits are not.
    assert loss(PolicyOutput(head, torch.tensor([[1.0, -1.0, -1e8]])), labels).item() == pytest.approx(0.0, abs=1e-6)
    logits = PolicyOutput(CategoricalHead((3,)), torch.tensor([[1.0, 0.0, -1e8]]))
    assert loss(logits, labels).item() == pytest.approx(0.0, abs=1e-6)


def test_advantage_weighted_nll_by_hand() -> None:
    # The action taken is 0. Its Q value is 2 below the best: exp(-2 / 4), and the student gives it 1/2.
    labels = make_labels(torch.tensor([[1.0, 3.0]]))
    student = PolicyOutput(LOGITS, torch.zeros(1, 2))
    assert AdvantageWeightedNLL(temperature=4.0)(student, labels).item() == pytest.approx(
        math.exp(-0.5) * math.log(2), abs=1e-6
    )
    # Return-to-go 0 and value -3: exp(3), clipped at 7.
    teacher = PolicyOutput(LOGITS, torch.zeros(1, 2), value=torch.tensor([-3.0]))
    valued = dataclasses.replace(labels, teacher=teacher)
    assert AdvantageWeightedNLL(clip=7.0)(student, valued).item() == pytest.approx(7 * math.log(2), rel=1e-5)
    assert AdvantageWeightedNLL()(student, valued).item() == pytest.approx(20 * math.log(2), rel=1e-5)  # exp(3) = 20.1


def test_large_margin_by_hand() -> None:
    # The teacher's best action is 1. max(4 + 1/2, 5) - 5 = 0 and max(5 + 1/2, 5) - 5 = 1/2.
    labels = make_labels(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    loss = LargeMargin(margin=0.5)(PolicyOutput(Q, torch.tensor([[4.0, 5.0], [5.0, 5.0]])), labels)
    assert loss.tolist() == pytest.approx([0.0, 0.5])
    assert LargeMargin()(PolicyOutput(Q, torch.full((2, 2), 5.0)), labels).tolist() == pytest.approx([0.8, 0.8])


def test_value_mse_by_hand() -> None:
    # V_teacher = max (1, 3) = 3; (5 - 3)^2. A teacher of logits says it itself: (5 - 7)^2.
    params = torch.tensor([[1.0, 3.0]])
    student = PolicyOutput(LOGITS, torch.zeros(1, 2), value=torch.tensor([5.0]))
    assert ValueMSE()(student, make_labels(params)).tolist() == [4.0]
    labels = make_labels(params, LOGITS)
    labels = dataclasses.replace(labels, teacher=PolicyOutput(LOGITS, params, value=torch.tensor([7.0])))
    assert ValueMSE()(student, labels).tolist() == [4.0]


def test_feature_mse_by_hand() -> None:
    # ((1 - 0)^2 + (2 - 4)^2) / 2
    teacher = PolicyOutput(Q, torch.zeros(1, 2), features=torch.tensor([[0.0, 4.0]]))
    labels = dataclasses.replace(make_labels(torch.zeros(1, 2)), teacher=teacher)
    assert FeatureMSE()(PolicyOutput(Q, torch.zeros(1, 2), features=torch.tensor([[1.0, 2.0]])), labels).item() == 2.5


@pytest.mark.parametrize("loss", [ValueMSE(), FeatureMSE()])
def test_missing_values_and_features_of_the_teacher_are_refused(loss: ValueMSE | FeatureMSE) -> None:
    student = PolicyOutput(LOGITS, torch.zeros(1, 2))
    with pytest.raises(SpecMismatchError, match="teacher"):
        loss(student, make_labels(torch.zeros(1, 2), LOGITS))


def test_missing_values_and_features_of_the_student_are_refused() -> None:
    labels = make_labels(torch.zeros(1, 2))
    with pytest.raises(SpecMismatchError, match="ValueMSE: expected a student with a value"):
        ValueMSE()(PolicyOutput(Q, torch.zeros(1, 2)), labels)
    labels = dataclasses.replace(labels, teacher=PolicyOutput(Q, torch.zeros(1, 2), features=torch.zeros(1, 3)))
    for features, found in ((None, "None"), (torch.zeros(1, 1), r"\(1, 1\)")):
        with pytest.raises(SpecMismatchError, match=rf"the student has features {found}, the teacher \(1, 3\)"):
            FeatureMSE()(PolicyOutput(Q, torch.zeros(1, 2), features=features), labels)


def test_gaussian_kl_of_tiny_standard_deviations_is_finite() -> None:
    # e^-60 squared is 0 in float32; the ratio of equal standard deviations is 1.
    head = GaussianHead(low=(-1.0,), high=(1.0,))
    params = torch.tensor([[0.0, -60.0]])
    assert ForwardKL()(PolicyOutput(head, params), make_labels(params, head)).item() == 0


@pytest.mark.parametrize("head", [GaussianHead, SquashedGaussianHead])
def test_kl_of_a_teacher_without_noise_is_its_distance(head: type[GaussianHead]) -> None:
    space, teacher = head(low=(-1.0,) * 2, high=(1.0,) * 2), torch.tensor([[0.5, -1.0, -20.0, -20.0]])
    student, labels = PolicyOutput(space, torch.tensor([[0.0, 0.0, -1.0, -2.0]])), make_labels(teacher, space)
    assert ForwardKL()(student, labels) == Wasserstein()(student, labels)
    labels = make_labels(torch.tensor([[0.5, -1.0, -20.0, -19.0]]), space)
    assert ForwardKL()(student, labels) > 10 * Wasserstein()(student, labels)


def test_kl_of_a_deterministic_teacher_is_the_squared_error() -> None:
    space = DeterministicHead(low=(-1.0,) * 2, high=(1.0,) * 2)
    student, labels = PolicyOutput(space, torch.zeros(1, 2)), make_labels(torch.tensor([[0.5, -1.0]]), space)
    assert ForwardKL()(student, labels).item() == pytest.approx(1.25)


def test_advantage_weighted_nll_needs_values() -> None:
    labels = make_labels(torch.zeros(1, 2), LOGITS)
    with pytest.raises(SpecMismatchError, match="expected a teacher with Q values or a value, found categorical alone"):
        AdvantageWeightedNLL()(PolicyOutput(LOGITS, torch.zeros(1, 2)), labels)
