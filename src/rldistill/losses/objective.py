"""Objective of a fit: loss terms, their weights over time, and the lowest loss of a constant output."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, ValidationInfo
from torch import Tensor

from rldistill.core.errors import SpecMismatchError
from rldistill.core.fields import read, validated_dataclass
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Batch, Labels, PolicyOutput
from rldistill.core.schedules import Constant, Schedule
from rldistill.core.spec import PolicySpec
from rldistill.losses import LOSSES, AdvantageWeightedNLL, AnyLoss
from rldistill.losses.policy import Softened

MIN_TEMPERATURE = 1e-6


@validated_dataclass
class Term:
    """A loss and its weight over the course of training."""

    loss: AnyLoss
    weight: Schedule = Constant(1.0)


def _with_loss(value: Any, info: ValidationInfo) -> Any:
    """Return the fields of a term that a run file writes as `{name: forward_kl, weight: 1}`, or `forward_kl`."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        return value
    loss = {key: item for key, item in value.items() if key != "weight"}
    weight = {key: item for key, item in value.items() if key == "weight"}
    return {"loss": read(AnyLoss, loss, info.context), **weight}


TermField = Annotated[Term, BeforeValidator(_with_loss)]
"""A term as a field of a configuration class."""


def total_loss(terms: tuple[Term, ...], student: PolicyOutput, batch: Batch, progress: float) -> Tensor:
    """Return sum_i w_i(progress) * sum_b weight_b loss_i(b) / sum_b weight_b."""
    scale = (batch.weight / batch.weight.sum()).flatten()
    losses = [unreduced(term, student, batch).flatten().to(scale.dtype) for term in terms]
    means = [torch.dot(loss, term.weight(progress) * scale) for loss, term in zip(losses, terms, strict=True)]
    return reduce(torch.add, means)


def differentiate(loss: Tensor) -> None:
    """Compute the gradients of a loss; raise SpecMismatchError if it has none, or lost a tensor that they need."""
    if not loss.requires_grad:
        raise SpecMismatchError(
            "distill.losses: no loss has a gradient. Compute it from the student's output, without detach."
        )
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise SpecMismatchError(
            "distill: a student or a loss changes a tensor in place that its gradient needs. Change a copy."
        ) from error


def unreduced(term: Term, student: PolicyOutput, labels: Labels) -> Tensor:
    """Return the loss of each transition; raise SpecMismatchError for heads that do not fit, and for other results."""
    loss, shape = _computed(term.loss, student, labels), labels.reward.shape
    if not isinstance(loss, Tensor) or not loss.is_floating_point():
        found = f"a tensor of {loss.dtype}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise SpecMismatchError(
            f"distill.losses: {type(term.loss).__name__} returns {found}. Return a tensor of floats, one for each "
            "transition."
        )
    if loss.shape != shape:
        raise SpecMismatchError(
            f"distill.losses: {type(term.loss).__name__} returns shape {tuple(loss.shape)} for a batch of "
            f"{tuple(shape)}. A loss keeps its leading dimensions; the mean is taken later."
        )
    return loss


def _computed(loss: AnyLoss, student: PolicyOutput, labels: Labels) -> Tensor:
    """Return a loss; name its place and a remedy in errors of the built-in losses."""
    try:
        return loss(student, labels)
    except SpecMismatchError as error:
        if type(loss) not in LOSSES.values():
            raise
        remedy = "" if str(error).endswith(".") else ". Use losses that fit both heads."
        raise SpecMismatchError(f"distill.losses: {error}{remedy}") from None


def given_temperature(terms: tuple[Term, ...]) -> float | None:
    """Return the first temperature that a loss sets for the teacher's distribution; None if none does."""
    losses = [term.loss for term in terms if isinstance(term.loss, Softened)]
    return next((loss.temperature for loss in losses if loss.temperature is not None), None)


def default_temperature(head: ActionHead, action_gap: Callable[[], float]) -> float:
    """Return half the action gap of Q values, so that the best action is preferred by about e^2 : 1; 1 for logits."""
    return max(action_gap() / 2, MIN_TEMPERATURE) if head.action_values else 1.0


def with_temperatures(
    terms: tuple[Term, ...],
    head: ActionHead,
    action_gap: Callable[[], float],
    advantage_scale: Callable[[], float] = lambda: 1.0,
) -> tuple[Term, ...]:
    """Return the terms with the temperatures that were left open.

    Args:
        terms: the losses and their weights.
        head: the head of the teacher.
        action_gap: measures the mean gap of its Q values.
        advantage_scale: measures its advantages, for AdvantageWeightedNLL of logits.
    """

    def fill(loss: AnyLoss) -> AnyLoss:
        if not isinstance(loss, Softened | AdvantageWeightedNLL) or loss.temperature is not None:
            return loss
        by_value = isinstance(loss, AdvantageWeightedNLL) and not head.action_values
        temperature = max(advantage_scale(), MIN_TEMPERATURE) if by_value else default_temperature(head, action_gap)
        return dataclasses.replace(loss, temperature=temperature)

    return tuple(dataclasses.replace(term, loss=fill(term.loss)) for term in terms)


def student_spec(teacher: PolicySpec, terms: tuple[Term, ...]) -> PolicySpec:
    """Return the teacher's spec with the head that the losses train: Q values if any needs them, else logits."""
    if not teacher.head.action_values or any(term.loss.student_head == "q_values" for term in terms):
        return teacher
    return dataclasses.replace(teacher, head=teacher.head.as_kind("categorical"))


def policy_terms(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """Return the terms that compare actions; those on values and features need labels that not every teacher has."""
    return tuple(term for term in terms if term.loss.student_head not in ("value", "features"))


def require_comparable(
    terms: tuple[Term, ...], teacher: ActionHead, student: ActionHead, has_value: bool = False
) -> None:
    """Raise SpecMismatchError if a built-in loss cannot compare these heads; `has_value` if labels may have values."""
    output, label = (PolicyOutput(head, torch.zeros(1, head.num_params)) for head in (student, teacher))
    number = torch.zeros(1)
    label = dataclasses.replace(label, value=number if has_value else None)
    labels = Labels(label, label, output.mode(), number, number, number.bool())
    for term in with_temperatures(terms, teacher, lambda: 1.0):
        if type(term.loss) in LOSSES.values():
            _computed(term.loss, output, labels)


def best_constant_loss(terms: tuple[Term, ...], batch: Batch, head: ActionHead) -> float:
    """Return the lowest loss of one output for all observations, found by L-BFGS from two initial outputs.

    These are the teacher's mean and zeros, since bounded losses are flat far from their minimum.
    """
    mean = batch.teacher.params.mean(0)[: head.num_params]
    return min(_minimize(terms, batch, head, params) for params in (mean, torch.zeros_like(mean)))


def _minimize(terms: tuple[Term, ...], batch: Batch, head: ActionHead, initial: Tensor) -> float:
    # SciPy's L-BFGS, since that of torch.optim imports PyTorch's compiler, which takes most of a second.
    from scipy.optimize import minimize

    labels = batch.teacher.features
    sizes = [len(initial), 1, 0 if labels is None else labels.shape[-1]]  # of params, value and features

    def closure(point: Any) -> tuple[float, Any]:
        leaf = torch.from_numpy(point).to(initial.dtype).requires_grad_()
        params, value, features = (part.expand(len(batch.action), -1) for part in torch.split(leaf, sizes))
        loss = total_loss(terms, PolicyOutput(head, params, value[:, 0], features), batch, 1.0)
        differentiate(loss)
        assert leaf.grad is not None
        return loss.item(), leaf.grad.double().numpy()

    start = torch.cat([initial, initial.new_zeros(sum(sizes[1:]))]).double().numpy()
    if not math.isfinite(closure(start)[0]):
        names = " + ".join(type(term.loss).__name__ for term in terms)
        raise SpecMismatchError(
            f"distill.losses: {names} is NaN or infinite where the student predicts the same for all observations. "
            "Correct it, or use another loss."
        )
    return float(minimize(closure, start, jac=True, method="L-BFGS-B", options={"maxiter": 100}).fun)
