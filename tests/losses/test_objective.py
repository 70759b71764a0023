"""Objective of a fit, by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rldistill.core.errors import SpecMismatchError
from rldistill.core.fields import USER_CODE, read
from rldistill.core.heads import ActionHead, CategoricalHead, GaussianHead, QValuesHead
from rldistill.core.policy import Batch, PolicyOutput
from rldistill.core.schedules import Constant, Linear
from rldistill.core.spec import PolicySpec
from rldistill.losses import (
    LOSSES,
    QMSE,
    ActionNLL,
    AdvantageMSE,
    AdvantageWeightedNLL,
    AnyLoss,
    Entropy,
    FeatureMSE,
    ForwardKL,
    Jeffreys,
    ReverseKL,
    ValueMSE,
    Wasserstein,
)
from rldistill.losses.objective import (
    Term,
    TermField,
    best_constant_loss,
    default_temperature,
    given_temperature,
    policy_terms,
    require_comparable,
    student_spec,
    total_loss,
    unreduced,
    with_temperatures,
)

Q, LOGITS = QValuesHead((2,)), CategoricalHead((2,))
GAUSSIAN = GaussianHead(low=(0.0,), high=(1.0,))


@dataclasses.dataclass(frozen=True)
class UserLoss(QMSE):
    """Loss of a user."""


def make_batch(params: list[list[float]], weight: list[float], head: ActionHead = Q) -> Batch:
    teacher, zeros = PolicyOutput(head, torch.tensor(params)), torch.zeros(len(params))
    return Batch(teacher, teacher, zeros.long(), zeros, zeros, zeros.bool(), zeros, torch.tensor(weight))


@pytest.mark.parametrize(
    ("value", "term"),
    [
        ("reverse_kl", Term(ReverseKL())),
        ({"name": "forward_kl", "temperature": 2.0}, Term(ForwardKL(2.0), Constant(1.0))),
        ({"name": "forward_kl", "weight": 3.0}, Term(ForwardKL(), Constant(3.0))),
        (Term(QMSE(), Linear()), Term(QMSE(), Linear())),
        (f"{__name__}:UserLoss", Term(UserLoss())),
    ],
    ids=["name", "settings", "weight", "term", "user code"],
)
def test_terms_of_run_files(value: Any, term: Term) -> None:
    assert read(TermField, value, USER_CODE) == term


def test_terms_of_code_that_the_user_did_not_write_are_refused() -> None:
    with pytest.raises(ValidationError, match="UserLoss"):
        read(TermField, f"{__name__}:UserLoss")


def test_total_loss_is_the_weighted_mean_of_the_weighted_terms() -> None:
    batch = make_batch([[0.0, 0.0], [0.0, 0.0]], [1.0, 3.0])
    student = PolicyOutput(Q, torch.tensor([[1.0, 1.0], [2.0, 2.0]]), value=torch.tensor([3.0, 0.0]))
    terms = (Term(QMSE()), Term(ValueMSE(), Linear(start=2.0, end=0.0)))
    # QMSE is (1, 4), with mean (1 + 3 * 4) / 4; ValueMSE is (9, 0), with mean 9 / 4, and weighs 1.5 after a quarter
    assert total_loss(terms, student, batch, 0.25).item() == pytest.approx(13 / 4 + 1.5 * 9 / 4)
    assert total_loss(terms, student, batch, 1.0).item() == pytest.approx(13 / 4)


def test_reduced_losses_are_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Reduced(QMSE):
        def __call__(self, student, labels):  # type: ignore[no-untyped-def]
            return super().__call__(student, labels).mean()

    batch = make_batch([[0.0, 0.0]] * 2, [1.0, 1.0])
    student = PolicyOutput(Q, torch.zeros(2, 2))
    assert unreduced(Term(QMSE()), student, batch).shape == (2,)
    with pytest.raises(SpecMismatchError, match=r"Reduced returns shape \(\) for a batch of \(2,\)"):
        unreduced(Term(Reduced()), student, batch)


@pytest.mark.parametrize("loss", [ForwardKL, ReverseKL, Jeffreys, AdvantageMSE])
def test_temperatures_of_the_teacher_are_found(loss: type[ForwardKL]) -> None:
    assert given_temperature((Term(ActionNLL()), Term(loss()), Term(loss(3.0)), Term(loss(5.0)))) == 3
    assert given_temperature((Term(loss()), Term(AdvantageWeightedNLL(temperature=2.0)))) is None


def test_default_temperature_is_half_the_action_gap_of_values() -> None:
    assert default_temperature(Q, lambda: 3.0) == 1.5
    assert default_temperature(Q, lambda: 0.0) == 1e-6
    assert default_temperature(LOGITS, lambda: 3.0) == 1


@pytest.mark.parametrize(
    ("loss", "head", "expected"),
    [
        (ForwardKL(), Q, ForwardKL(2.0)),
        (ForwardKL(), LOGITS, ForwardKL(1.0)),
        (ForwardKL(0.5), Q, ForwardKL(0.5)),
        (AdvantageWeightedNLL(), Q, AdvantageWeightedNLL(2.0)),
        (AdvantageWeightedNLL(), LOGITS, AdvantageWeightedNLL(7.0)),
        (AdvantageWeightedNLL(0.5), LOGITS, AdvantageWeightedNLL(0.5)),
        (ActionNLL(), Q, ActionNLL()),
    ],
)
def test_open_temperatures_are_filled_in(loss: AnyLoss, head: ActionHead, expected: AnyLoss) -> None:
    weight = Linear()
    (term,) = with_temperatures((Term(loss, weight),), head, lambda: 4.0, lambda: 7.0)
    assert term == Term(expected, weight)


def test_advantages_without_scale_have_a_positive_temperature() -> None:
    (term,) = with_temperatures((Term(AdvantageWeightedNLL()),), LOGITS, lambda: 4.0, lambda: 0.0)
    assert term.loss == AdvantageWeightedNLL(1e-6)
    (term,) = with_temperatures((Term(AdvantageWeightedNLL()),), LOGITS, lambda: 4.0)
    assert term.loss == AdvantageWeightedNLL(1.0)


@pytest.mark.parametrize(
    ("teacher", "losses", "expected"),
    [
        (Q, [ForwardKL()], LOGITS),
        (Q, [ForwardKL(), QMSE()], Q),
        (Q, [ValueMSE()], LOGITS),
        (LOGITS, [ForwardKL()], LOGITS),
        (GAUSSIAN, [ActionNLL()], GAUSSIAN),
    ],
)
def test_students_have_values_only_if_a_loss_needs_them(
    teacher: ActionHead, losses: list[AnyLoss], expected: ActionHead
) -> None:
    spec = PolicySpec((3,), "float32", teacher, env_kwargs=(("a", 1),))
    assert student_spec(spec, tuple(map(Term, losses))) == dataclasses.replace(spec, head=expected)


def test_terms_on_values_and_features_compare_no_actions() -> None:
    terms = Term(ForwardKL()), Term(ValueMSE()), Term(QMSE()), Term(FeatureMSE())
    assert policy_terms(terms) == (terms[0], terms[2])


def test_losses_that_do_not_fit_the_heads_are_refused() -> None:
    terms = tuple(Term(loss()) for name, loss in LOSSES.items() if name not in ("wasserstein", "entropy"))
    require_comparable(policy_terms(terms), Q, Q)
    require_comparable((Term(Wasserstein()), Term(Entropy())), GAUSSIAN, GAUSSIAN)
    with pytest.raises(SpecMismatchError, match=r"^distill\.losses: QMSE's .* Use losses that fit both heads\.$"):
        require_comparable((Term(ForwardKL()), Term(QMSE())), LOGITS, LOGITS)
    with pytest.raises(SpecMismatchError, match=r"^distill\.losses: Wasserstein: .*categorical"):
        require_comparable((Term(Wasserstein()),), LOGITS, LOGITS)


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (Wasserstein(), "Wasserstein: expected a Gaussian head, found categorical"),
        (ValueMSE(), "ValueMSE: expected a teacher with Q values or a value, found categorical alone"),
    ],
)
def test_losses_that_do_not_fit_are_refused_in_a_fit_too(loss: Any, problem: str) -> None:
    student = PolicyOutput(LOGITS, torch.zeros(1, 2))
    batch = dataclasses.replace(make_batch([[0.0, 0.0]], [1.0]), teacher=student)
    with pytest.raises(SpecMismatchError, match=rf"^distill\.losses: {problem}\. Use losses that fit both heads\.$"):
        total_loss((Term(loss),), student, batch, 0.0)


def test_teachers_of_logits_may_have_values_for_advantages() -> None:
    terms = (Term(AdvantageWeightedNLL()),)
    require_comparable(terms, LOGITS, LOGITS, has_value=True)
    with pytest.raises(SpecMismatchError, match="expected a teacher with Q values or a value"):
        require_comparable(terms, LOGITS, LOGITS)


def test_best_constants_include_values_and_features() -> None:
    labels = PolicyOutput(
        LOGITS, torch.zeros(2, 2), torch.tensor([0.0, 2.0]), torch.tensor([[0.0, 1.0, 3.0], [4.0, 1.0, 3.0]])
    )
    batch = dataclasses.replace(make_batch([[0.0, 0.0]] * 2, [1.0, 1.0]), teacher=labels)
    # Variances: 1 of the values; (4 + 0 + 0) / 3 of the features
    assert best_constant_loss((Term(ValueMSE()),), batch, LOGITS) == pytest.approx(1, abs=1e-4)
    assert best_constant_loss((Term(FeatureMSE()),), batch, LOGITS) == pytest.approx(4 / 3, abs=1e-4)


@pytest.mark.parametrize(
    ("params", "expected"), [([[0.0, 2.0]], 0), ([[0.0, 2.0], [4.0, 2.0]], 2), ([[0.0] * 2] * 3, 0)]
)
def test_best_constants_of_squared_errors_are_means(params: list[list[float]], expected: float) -> None:
    # Variances of the columns, 4 and 0, and their mean; three times that at the end of the schedule
    terms = (Term(QMSE(), Linear(start=1.0, end=3.0)),)
    assert best_constant_loss(terms, make_batch(params, [1.0] * len(params)), Q) == pytest.approx(
        3 * expected, abs=1e-5
    )


def test_best_constants_of_bounded_losses_are_found_where_they_are_flat() -> None:
    """Values of 100 in a fifth of the states put their mean where tanh has no slope."""
    batch = make_batch([[0.0, 1.0]] * 4 + [[100.0, 0.0]], [1.0] * 5)
    # Always the second action, the first at the mean of -tanh(1) and 0: its variance, and 1 where the second is wrong.
    expected = (np.array([math.tanh(1)] * 4 + [0.0]).var() + 0.2) / 2
    assert best_constant_loss((Term(AdvantageMSE(1.0)),), batch, LOGITS) == pytest.approx(expected, rel=1e-3)
