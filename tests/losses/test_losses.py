"""Losses against numbers worked out by hand, and the contract that all of them keep."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from rldistill.errors import SpecMismatchError
from rldistill.losses import LOSSES, QMSE, ActionNLL, AnyLoss, BellmanTarget, ForwardKL, QHuber, ReverseKL
from rldistill.types import ActionHead, Batch, PolicyOutput

Q = ActionHead("q_values", (2,))
LOGITS = ActionHead("categorical", (2,))


def make_batch(params: Tensor, head: ActionHead = Q, terminated: bool = False) -> Batch:
    lead = params.shape[:-1]
    zeros = torch.zeros(lead)
    return Batch(
        obs=zeros,
        action=torch.zeros(lead, dtype=torch.int64),
        reward=zeros + 2.0,
        return_to_go=zeros,
        terminated=torch.full(lead, terminated),
        truncated=torch.full(lead, not terminated),
        teacher=PolicyOutput(head, params),
        next_teacher=PolicyOutput(head, params + 1),
        next_obs=None,
        weight=zeros + 1,
        episode=zeros.long(),
        step=zeros.long(),
        actor=zeros.long(),
        task=zeros.long(),
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
    head = ActionHead("gaussian", low=(-9.0,), high=(9.0,))
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


@pytest.mark.parametrize("loss", [kind() for kind in LOSSES.values()], ids=list(LOSSES))
class TestContract:
    def test_leading_dimensions_are_kept(self, loss: AnyLoss) -> None:
        for lead in [(5,), (3, 4)]:
            params = torch.randn(*lead, 2)
            assert loss(PolicyOutput(Q, params), make_batch(torch.randn(*lead, 2))).shape == lead

    def test_extreme_outputs_stay_finite(self, loss: AnyLoss) -> None:
        params = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
        assert torch.isfinite(loss(PolicyOutput(Q, params), make_batch(-params))).all()

    def test_no_gradient_reaches_the_teacher(self, loss: AnyLoss) -> None:
        labels = torch.randn(4, 2)
        student = torch.randn(4, 2, requires_grad=True)
        loss(PolicyOutput(Q, student), make_batch(labels)).sum().backward()
        assert student.grad is not None
        assert labels.grad is None

    def test_one_sample_does_not_depend_on_the_others(self, loss: AnyLoss) -> None:
        params, labels = torch.randn(4, 2), torch.randn(4, 2)
        once = loss(PolicyOutput(Q, params), make_batch(labels))
        twice = loss(PolicyOutput(Q, params.repeat(2, 1)), make_batch(labels.repeat(2, 1)))
        torch.testing.assert_close(twice, once.repeat(2))

    def test_it_is_a_frozen_dataclass(self, loss: AnyLoss) -> None:
        assert dataclasses.is_dataclass(loss)
        with pytest.raises(dataclasses.FrozenInstanceError):
            loss.anything = 1  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", [ForwardKL(), ReverseKL(), QMSE(), QHuber()])
def test_equal_outputs_cost_nothing(loss: AnyLoss) -> None:
    params = torch.randn(6, 2)
    torch.testing.assert_close(loss(PolicyOutput(Q, params), make_batch(params)), torch.zeros(6), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", [QMSE(), QHuber(), BellmanTarget()])
def test_losses_on_q_values_refuse_logits(loss: AnyLoss) -> None:
    with pytest.raises(SpecMismatchError, match="q_values"):
        loss(PolicyOutput(LOGITS, torch.zeros(1, 2)), make_batch(torch.zeros(1, 2)))
