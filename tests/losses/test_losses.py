"""Losses against numbers worked out by hand; the contract that all of them keep is in contracts/."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from rldistill.core.batch import Labels
from rldistill.core.errors import SpecMismatchError
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


def make_batch(params: Tensor, head: ActionHead = Q, terminated: bool = False) -> Labels:
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


def test_forward_kl_by_hand() -> None:
    # p = softmax(2 (ln 3, 0) / 2) = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2)
    batch = make_batch(torch.tensor([[2 * math.log(3), 0.0]]))
    student = PolicyOutput(LOGITS, torch.zeros(1, 2))
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert ForwardKL(temperature=2.0)(student, batch).item() == pytest.approx(expected, abs=1e-6)


def test_reverse_kl_by_hand() -> None:
    # KL(q || p) = 1/2 ln(2/3) + 1/2 ln 2 with the same p and q
    batch = make_batch(torch.tensor([[2 * math.log(3), 0.0]]))
    student = PolicyOutput(LOGITS, torch.zeros(1, 2))
    expected = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert ReverseKL(temperature=2.0)(student, batch).item() == pytest.approx(expected, abs=1e-6)


def test_gaussian_kl_by_hand() -> None:
    # N(1, 1) to N(0, e): log(e) + (1 + 1) / (2 e^2) - 1/2
    head = GaussianHead(low=(-9.0,), high=(9.0,))
    batch = make_batch(torch.tensor([[1.0, 0.0]]), head)
    student = PolicyOutput(head, torch.tensor([[0.0, 1.0]]))
    assert ForwardKL()(student, batch).item() == pytest.approx(1 + 2 / (2 * math.e**2) - 0.5, abs=1e-6)


def test_action_nll_by_hand() -> None:
    # the teacher's best action is 1; the student gives it e^1 / (e^0 + e^1)
    batch = make_batch(torch.tensor([[0.0, 5.0]]))
    student = PolicyOutput(LOGITS, torch.tensor([[0.0, 1.0]]))
    assert ActionNLL()(student, batch).item() == pytest.approx(-math.log(math.e / (1 + math.e)), abs=1e-6)


def test_q_losses_by_hand() -> None:
    batch = make_batch(torch.tensor([[1.0, 2.0]]))
    student = PolicyOutput(Q, torch.tensor([[1.5, 5.0]]))
    assert QMSE()(student, batch).item() == pytest.approx((0.5**2 + 3**2) / 2)
    assert QHuber()(student, batch).item() == pytest.approx((0.5 * 0.5**2 + (3 - 0.5)) / 2)


@pytest.mark.parametrize(("terminated", "target"), [(True, 2.0), (False, 2 + 0.9 * 3)])
def test_the_bellman_target_bootstraps_at_truncation_only(terminated: bool, target: float) -> None:
    # r = 2, max_a' Q_teacher(s', a') = 3, Q_student(s, 0) = 1.5
    batch = make_batch(torch.tensor([[1.0, 2.0]]), terminated=terminated)
    student = PolicyOutput(Q, torch.tensor([[1.5, 5.0]]))
    assert BellmanTarget(gamma=0.9)(student, batch).item() == pytest.approx((1.5 - target) ** 2, rel=1e-6)


def test_jeffreys_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2) as above: sum (p - q) ln(p / q) = 1/4 ln(3/2) - 1/4 ln(1/2) = 1/4 ln 3
    batch = make_batch(torch.tensor([[2 * math.log(3), 0.0]]))
    loss = Jeffreys(temperature=2.0)(PolicyOutput(LOGITS, torch.zeros(1, 2)), batch)
    assert loss.item() == pytest.approx(0.25 * math.log(3), abs=1e-6)


def test_wasserstein_by_hand() -> None:
    # means (1, -2) and (0, 0): 1 + 4; spreads (1, 1) and (2, 3): 1 + 4
    head = GaussianHead(low=(-9.0, -9.0), high=(9.0, 9.0))
    batch = make_batch(torch.tensor([[1.0, -2.0, 0.0, 0.0]]), head)
    student = PolicyOutput(head, torch.tensor([[0.0, 0.0, math.log(2), math.log(3)]]))
    assert Wasserstein()(student, batch).item() == pytest.approx(10.0, abs=1e-5)


def test_entropy_by_hand() -> None:
    batch = make_batch(torch.zeros(1, 2))
    # (3/4, 1/4): -(3/4 ln(3/4) + 1/4 ln(1/4)) = ln 4 - 3/4 ln 3
    quarters = math.log(4) - 0.75 * math.log(3)
    logits = torch.tensor([[math.log(3), 0.0]])
    assert Entropy()(PolicyOutput(LOGITS, logits), batch).item() == pytest.approx(-quarters, abs=1e-6)
    bits = PolicyOutput(BernoulliHead((2,)), logits)  # a bit of 3/4, and a fair one
    assert Entropy()(bits, batch).item() == pytest.approx(-quarters - math.log(2), abs=1e-6)
    several = PolicyOutput(MultiCategoricalHead((2, 2)), torch.tensor([[math.log(3), 0.0, 5.0, 5.0]]))
    assert Entropy()(several, batch).item() == pytest.approx(-quarters - math.log(2), abs=1e-6)
    # N(0, e): 1 + 1/2 ln(2 pi e)
    spread = PolicyOutput(GaussianHead(low=(-9.0,), high=(9.0,)), torch.tensor([[7.0, 1.0]]))
    assert Entropy()(spread, batch).item() == pytest.approx(-1 - 0.5 * math.log(2 * math.pi * math.e), abs=1e-6)


def test_gap_weighted_nll_by_hand() -> None:
    # The gap is 5 - (-1), and the student gives the best action 1/2.
    batch = make_batch(torch.tensor([[-1.0, 5.0]]))
    loss = GapWeightedNLL()(PolicyOutput(LOGITS, torch.zeros(1, 2)), batch)
    assert loss.item() == pytest.approx(6 * math.log(2), abs=1e-6)


def test_a_gap_does_not_count_what_is_illegal() -> None:
    head = QValuesHead((3,))
    batch = make_batch(torch.tensor([[-1.0, 5.0, -1e8]]), head)
    loss = GapWeightedNLL()(PolicyOutput(CategoricalHead((3,)), torch.zeros(1, 3)), batch)
    assert loss.item() == pytest.approx(6 * math.log(3), abs=1e-5)


def test_advantage_mse_by_hand() -> None:
    # The teacher's second action costs 2, which is one temperature; what is illegal costs all there is, 1.
    head = QValuesHead((3,))
    batch = make_batch(torch.tensor([[5.0, 3.0, -1e8]]), head)
    loss = AdvantageMSE(temperature=2.0)
    undecided = PolicyOutput(CategoricalHead((3,)), torch.full((1, 3), 7.0))
    assert loss(undecided, batch).item() == pytest.approx((math.tanh(1) ** 2 + 1) / 3, abs=1e-6)
    # Values count by what they differ, and are divided as the teacher's are; logits are not.
    assert loss(PolicyOutput(head, torch.tensor([[1.0, -1.0, -1e8]])), batch).item() == pytest.approx(0.0, abs=1e-6)
    logits = PolicyOutput(CategoricalHead((3,)), torch.tensor([[1.0, 0.0, -1e8]]))
    assert loss(logits, batch).item() == pytest.approx(0.0, abs=1e-6)


def test_advantage_weighted_nll_by_hand() -> None:
    # The action taken is 0. Its Q value is 2 below the best: exp(-2 / 4), and the student gives it 1/2.
    batch = make_batch(torch.tensor([[1.0, 3.0]]))
    student = PolicyOutput(LOGITS, torch.zeros(1, 2))
    assert AdvantageWeightedNLL(temperature=4.0)(student, batch).item() == pytest.approx(
        math.exp(-0.5) * math.log(2), abs=1e-6
    )
    # Return-to-go 0 and value -3: exp(3), clipped at 7.
    teacher = PolicyOutput(LOGITS, torch.zeros(1, 2), value=torch.tensor([-3.0]))
    valued = dataclasses.replace(batch, teacher=teacher)
    assert AdvantageWeightedNLL(clip=7.0)(student, valued).item() == pytest.approx(7 * math.log(2), rel=1e-5)


def test_large_margin_by_hand() -> None:
    # The teacher's best action is 1. max(4 + 1/2, 5) - 5 = 0 and max(5 + 1/2, 5) - 5 = 1/2.
    batch = make_batch(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    loss = LargeMargin(margin=0.5)(PolicyOutput(Q, torch.tensor([[4.0, 5.0], [5.0, 5.0]])), batch)
    assert loss.tolist() == pytest.approx([0.0, 0.5])


def test_value_mse_by_hand() -> None:
    # V_teacher = max (1, 3) = 3; (5 - 3)^2. A teacher of logits says it itself: (5 - 7)^2.
    params = torch.tensor([[1.0, 3.0]])
    student = PolicyOutput(LOGITS, torch.zeros(1, 2), value=torch.tensor([5.0]))
    assert ValueMSE()(student, make_batch(params)).tolist() == [4.0]
    batch = make_batch(params, LOGITS)
    batch = dataclasses.replace(batch, teacher=PolicyOutput(LOGITS, params, value=torch.tensor([7.0])))
    assert ValueMSE()(student, batch).tolist() == [4.0]


def test_feature_mse_by_hand() -> None:
    # ((1 - 0)^2 + (2 - 4)^2) / 2
    teacher = PolicyOutput(Q, torch.zeros(1, 2), features=torch.tensor([[0.0, 4.0]]))
    batch = dataclasses.replace(make_batch(torch.zeros(1, 2)), teacher=teacher)
    assert FeatureMSE()(PolicyOutput(Q, torch.zeros(1, 2), features=torch.tensor([[1.0, 2.0]])), batch).item() == 2.5


@pytest.mark.parametrize("loss", [ValueMSE(), FeatureMSE()])
def test_what_was_never_said_is_asked_for(loss: ValueMSE | FeatureMSE) -> None:
    student = PolicyOutput(LOGITS, torch.zeros(1, 2))
    with pytest.raises(SpecMismatchError, match="teacher"):
        loss(student, make_batch(torch.zeros(1, 2), LOGITS))
