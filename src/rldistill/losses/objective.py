"""What a fit minimises: loss terms, their weights over time, and the best that a constant can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from rldistill.core.batch import Batch, Labels
from rldistill.core.errors import SpecMismatchError
from rldistill.core.heads import ActionHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.schedules import Constant, Schedule
from rldistill.core.spec import PolicySpec
from rldistill.losses import LOSSES, AdvantageMSE, AdvantageWeightedNLL, AnyLoss, ForwardKL, Jeffreys, ReverseKL

SOFTENED = ForwardKL | ReverseKL | Jeffreys | AdvantageMSE
"""Losses with the teacher's temperature."""


@dataclass(frozen=True)
class Term:
    """A loss and its weight over the course of training."""

    loss: AnyLoss
    weight: Schedule = Constant(1.0)


def total_loss(terms: tuple[Term, ...], student: PolicyOutput, batch: Batch, progress: float) -> Tensor:
    """Return sum_i w_i(progress) * sum_b weight_b loss_i(b) / sum_b weight_b."""
    scale = (batch.weight / batch.weight.sum()).flatten()
    means = [torch.dot(unreduced(term, student, batch).flatten(), term.weight(progress) * scale) for term in terms]
    return reduce(torch.add, means)


def unreduced(term: Term, student: PolicyOutput, labels: Labels) -> Tensor:
    """Return the loss of each transition; raise SpecMismatchError if the loss of a user reduced it."""
    loss, shape = term.loss(student, labels), labels.reward.shape
    if loss.shape != shape:
        raise SpecMismatchError(
            f"distill.losses: {type(term.loss).__name__} returns shape {tuple(loss.shape)} for a batch of "
            f"{tuple(shape)}. A loss keeps its leading dimensions; the mean is taken later."
        )
    return loss


def temperature_of(terms: tuple[Term, ...]) -> float | None:
    """The first temperature that was given for the teacher's distribution; None if all are to be measured."""
    losses = [term.loss for term in terms if isinstance(term.loss, SOFTENED)]
    return next((loss.temperature for loss in losses if loss.temperature is not None), None)


def default_temperature(head: ActionHead, action_gap: Callable[[], float]) -> float:
    """By which a teacher is softened if nothing else is given: half the action gap of Q values, 1 for logits."""
    return max(action_gap() / 2, 1e-6) if head.action_values else 1.0


def with_temperatures(
    terms: tuple[Term, ...],
    head: ActionHead,
    action_gap: Callable[[], float],
    advantage_scale: Callable[[], float] = lambda: 1.0,
) -> tuple[Term, ...]:
    """Fill in the temperatures that were not given: for Q values half their mean action gap, so that the teacher's
    distribution prefers its best action by about e^2 : 1; for logits 1, and for their advantages what returns are away
    from the values."""

    def fill(loss: AnyLoss) -> AnyLoss:
        if not isinstance(loss, SOFTENED | AdvantageWeightedNLL) or loss.temperature is not None:
            return loss
        by_value = isinstance(loss, AdvantageWeightedNLL) and not head.action_values
        temperature = max(advantage_scale(), 1e-6) if by_value else default_temperature(head, action_gap)
        return dataclasses.replace(loss, temperature=temperature)

    return tuple(dataclasses.replace(term, loss=fill(term.loss)) for term in terms)


def student_spec(teacher: PolicySpec, terms: tuple[Term, ...]) -> PolicySpec:
    """The teacher's spec with the head that the losses train: Q values if any needs them, else logits."""
    head = teacher.head
    if head.action_values and not any(term.loss.student_head == "q_values" for term in terms):
        head = head.as_kind("categorical")
    return dataclasses.replace(teacher, head=head)


def of_the_policy(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """Those that compare what is done. What a value or features are compared with only a teacher's labels tell."""
    return tuple(term for term in terms if term.loss.student_head not in ("value", "features"))


def require_comparable(terms: tuple[Term, ...], teacher: ActionHead, student: ActionHead) -> None:
    """Raise SpecMismatchError if a loss of ours cannot compare what these two heads say, with nothing beside it."""
    output, label = (PolicyOutput(head, torch.zeros(1, head.num_params)) for head in (student, teacher))
    number = torch.zeros(1)
    labels = Labels(label, label, output.mode(), number, number, number.bool())
    for term in with_temperatures(terms, teacher, lambda: 1.0):
        try:
            if type(term.loss) in LOSSES.values():
                term.loss(output, labels)
        except SpecMismatchError as error:
            raise SpecMismatchError(f"distill.losses: {error}; take losses that fit both") from None


def feature_size(teacher: PolicyOutput) -> int:
    """F, the length of the teacher's features; 0 where there are none."""
    return 0 if teacher.features is None else teacher.features.shape[-1]


def best_constant_loss(terms: tuple[Term, ...], batch: Batch, head: ActionHead) -> float:
    """The lowest loss that one output for all observations can have, as far as it is found from two beginnings.

    From the teacher's mean, and from zeros: bounded losses are flat far from where they are least.
    """
    mean = batch.teacher.params.mean(0)[: head.num_params]
    return min(_least_loss(terms, batch, head, params) for params in (mean, torch.zeros_like(mean)))


def _least_loss(terms: tuple[Term, ...], batch: Batch, head: ActionHead, initial: Tensor) -> float:
    params = initial.clone().requires_grad_()
    value = torch.zeros((), requires_grad=True)
    features = torch.zeros(feature_size(batch.teacher), requires_grad=True)
    optimizer = torch.optim.LBFGS([params, value, features], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        said = (part.expand(len(batch.action), *part.shape) for part in (params, value, features))
        output = PolicyOutput(head, *said)
        return total_loss(terms, output, batch, 1.0)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return loss().item()
