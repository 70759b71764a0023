"""Tensor maths of the losses; everything keeps its leading dimensions."""

# ruff: noqa: F722 (shapes in annotations are not Python)
from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import ActionHead
from rldistill.core.policy import PolicyOutput

if TYPE_CHECKING:
    from jaxtyping import Float

CHOICE = ("categorical", "q_values")


def categorical_kl(p_logits: Float[Tensor, "*batch A"], q_logits: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
    """KL(p || q) = sum_a p(a) (log p(a) - log q(a))."""
    p, q = F.log_softmax(p_logits, -1), F.log_softmax(q_logits, -1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)  # which takes them in the other order


def bernoulli_kl(p_logits: Float[Tensor, "*batch A"], q_logits: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
    """KL(p || q) of independent bits: sum_i p_i log(p_i / q_i) + (1 - p_i) log((1 - p_i) / (1 - q_i))."""
    on = p_logits.sigmoid() * (F.logsigmoid(p_logits) - F.logsigmoid(q_logits))
    off = (-p_logits).sigmoid() * (F.logsigmoid(-p_logits) - F.logsigmoid(-q_logits))
    return (on + off).sum(-1)


def gaussian_kl(p: Float[Tensor, "*batch P"], q: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch"]:
    """KL(p || q) of diagonal Gaussians given as mean ++ log_std.

    sum_i log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2
    """
    (p_mean, p_log_std), (q_mean, q_log_std) = p.chunk(2, -1), q.chunk(2, -1)
    # Ratios, since a variance on its own underflows where both spreads are tiny.
    squares = (2 * (p_log_std - q_log_std)).exp() + ((p_mean - q_mean) * (-q_log_std).exp()) ** 2
    return (q_log_std - p_log_std + squares / 2 - 0.5).sum(-1)


def gaussian_wasserstein(p: Float[Tensor, "*batch P"], q: Float[Tensor, "*batch P"]) -> Float[Tensor, "*batch"]:
    """W_2^2(p, q) of diagonal Gaussians given as mean ++ log_std: |m_p - m_q|^2 + |s_p - s_q|^2."""
    (p_mean, p_log_std), (q_mean, q_log_std) = p.chunk(2, -1), q.chunk(2, -1)
    return ((p_mean - q_mean) ** 2 + (p_log_std.exp() - q_log_std.exp()) ** 2).sum(-1)


def categorical_entropy(logits: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
    """-sum_a p(a) log p(a), in nats."""
    log_p = F.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def entropy(policy: PolicyOutput) -> Tensor:
    """Of a policy's distribution over actions, in nats, summed over an action's parts; before tanh if squashed."""
    head, params = policy.head, policy.params
    if head.kind == "categorical":
        return categorical_entropy(params)
    if head.kind == "multi_categorical":
        parts = params.split_with_sizes(head.nvec, -1)
        total: Tensor = sum(categorical_entropy(part) for part in parts)  # type: ignore[assignment]
        return total
    if head.kind == "bernoulli":
        return (F.softplus(-params) + (-params).sigmoid() * params).sum(-1)
    require_kind("an entropy", head, "categorical", "multi_categorical", "bernoulli", "gaussian", "squashed_gaussian")
    return (params.chunk(2, -1)[1] + 0.5 * (1 + math.log(2 * math.pi))).sum(-1)


def log_prob(policy: PolicyOutput, chosen: Tensor) -> Tensor:
    """log pi(chosen), summed over an action's parts; of a Gaussian, `chosen` is before its bounds and its tanh."""
    head, params = policy.head, policy.params
    if head.kind == "categorical":
        return F.log_softmax(params, -1).gather(-1, chosen[..., None]).squeeze(-1)
    if head.kind == "multi_categorical":
        parts = zip(params.split_with_sizes(head.nvec, -1), chosen.unbind(-1), strict=True)
        total: Tensor = sum(F.log_softmax(part, -1).gather(-1, at[..., None]).squeeze(-1) for part, at in parts)  # type: ignore[assignment]
        return total
    if head.kind == "bernoulli":
        return -F.binary_cross_entropy_with_logits(params, chosen.float(), reduction="none").sum(-1)
    require_kind("a likelihood", head, "categorical", "multi_categorical", "bernoulli", "gaussian", "squashed_gaussian")
    return -gaussian_nll(chosen, params)


def gaussian_nll(action: Float[Tensor, "*batch A"], params: Float[Tensor, "*batch 2*A"]) -> Float[Tensor, "*batch"]:
    """-log N(action; mean, std), summed over the last dimension."""
    mean, log_std = params.chunk(2, -1)
    return (0.5 * ((action - mean) / log_std.exp()) ** 2 + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def kl(p: PolicyOutput, q: PolicyOutput, temperature_p: float, temperature_q: float) -> Tensor:
    """KL between two policies' distributions over actions; discrete ones are softened by their temperatures."""
    head = p.head
    require_same_space("a KL", head, q.head)
    if not head.discrete:
        require_kind("a KL", head, "gaussian", "squashed_gaussian")
        return gaussian_kl(p.params, q.params)
    p_logits, q_logits = _softened(p.params, temperature_p), _softened(q.params, temperature_q)
    if head.kind == "multi_categorical":
        parts = zip(p_logits.split_with_sizes(head.nvec, -1), q_logits.split_with_sizes(head.nvec, -1), strict=True)
        total: Tensor = sum(categorical_kl(a, b) for a, b in parts)  # type: ignore[assignment]
        return total
    return (bernoulli_kl if head.kind == "bernoulli" else categorical_kl)(p_logits, q_logits)


def _softened(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def detached(teacher: PolicyOutput) -> PolicyOutput:
    """The teacher's output as a constant: it is a label, even where a gradient could reach it."""
    return dataclasses.replace(teacher, params=teacher.params.detach()) if teacher.params.requires_grad else teacher


def require_same_space(loss: str, a: ActionHead, b: ActionHead) -> None:
    """Raise SpecMismatchError unless both heads are distributions over the same actions.

    A KL is the same before and after tanh, so that two squashed Gaussians are compared before it.
    """
    kinds = (a.kind, b.kind)
    alike = a.kind == b.kind or all(kind in CHOICE for kind in kinds)
    if not alike or a.nvec != b.nvec or len(a.low) != len(b.low):
        sizes = [head.nvec if head.discrete else (len(head.low),) for head in (a, b)]
        raise SpecMismatchError(f"{loss} cannot compare {kinds[0]} {sizes[0]} with {kinds[1]} {sizes[1]}")


def require_kind(loss: str, head: ActionHead, *kinds: str) -> None:
    """Raise SpecMismatchError unless `head` is of one of `kinds`."""
    if head.kind not in kinds:
        raise SpecMismatchError(f"{loss} needs a head of {' or '.join(kinds)}, and this one is {head.kind}")


def require_temperature(temperature: float | None) -> None:
    """Raise ConfigError for a temperature that is none."""
    if temperature is not None and not temperature > 0:
        raise ConfigError(f"temperature: expected a positive number or none, found {temperature}")
