"""Tensor maths of the losses; everything keeps its leading dimensions."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from rldistill.errors import SpecMismatchError
from rldistill.types import ActionHead, PolicyOutput


def categorical_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) = sum_a p(a) (log p(a) - log q(a)), `[..., A]` to `[...]`."""
    p, q = F.log_softmax(p_logits, -1), F.log_softmax(q_logits, -1)
    return (p.exp() * (p - q)).sum(-1)


def gaussian_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of diagonal Gaussians given as mean ++ log_std, `[..., 2A]` to `[...]`.

    sum_i log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2
    """
    (p_mean, p_log_std), (q_mean, q_log_std) = p.chunk(2, -1), q.chunk(2, -1)
    squares = (2 * p_log_std).exp() + (p_mean - q_mean) ** 2
    return (q_log_std - p_log_std + squares / (2 * (2 * q_log_std).exp()) - 0.5).sum(-1)


def gaussian_nll(action: Tensor, params: Tensor) -> Tensor:
    """-log N(action; mean, std), summed over the last dimension."""
    mean, log_std = params.chunk(2, -1)
    return (0.5 * ((action - mean) / log_std.exp()) ** 2 + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def kl(p: PolicyOutput, q: PolicyOutput, temperature_p: float, temperature_q: float) -> Tensor:
    """KL between two policies' distributions over actions; discrete ones are softened by their temperatures."""
    head = p.head
    if head.kind == "multi_categorical":
        parts = zip(p.params.split_with_sizes(head.nvec, -1), q.params.split_with_sizes(head.nvec, -1), strict=True)
        total: Tensor = sum(categorical_kl(a / temperature_p, b / temperature_q) for a, b in parts)  # type: ignore[assignment]
        return total
    if head.discrete:
        return categorical_kl(p.params / temperature_p, q.params / temperature_q)
    require_kind("a KL", head, "gaussian", "squashed_gaussian")
    require_kind("a KL", q.head, "gaussian", "squashed_gaussian")
    return gaussian_kl(p.params, q.params)


def require_kind(loss: str, head: ActionHead, *kinds: str) -> None:
    """Raise SpecMismatchError unless `head` is of one of `kinds`."""
    if head.kind not in kinds:
        raise SpecMismatchError(f"{loss} needs a head of {' or '.join(kinds)}, and this one is {head.kind}")
