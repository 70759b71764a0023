"""The categorical distribution of logits, `[..., A]`; actions are `[...]`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random action by the Gumbel-max trick (Maddison 2014, arXiv 1411.0030)."""
    uniform = torch.rand(logits.shape, generator=generator).clamp_min(1e-20)
    return (logits - (-uniform.log()).log()).argmax(-1)


def cross_entropy(logits: Tensor, action: Tensor) -> Tensor:
    """Return -log p(action)."""
    return -F.log_softmax(logits, -1).gather(-1, action[..., None]).squeeze(-1)


def entropy(logits: Tensor) -> Tensor:
    """Return -sum_a p(a) log p(a)."""
    log_p = F.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return sum_a p(a) (log p(a) - log q(a)), given the logits of p and q."""
    # kl_div takes its arguments in the opposite order.
    return F.kl_div(F.log_softmax(q, -1), F.log_softmax(p, -1), reduction="none", log_target=True).sum(-1)


def regret(values: Tensor, action: Tensor) -> Tensor:
    """Return max_a values(a) - values(action)."""
    return values.amax(-1) - values.gather(-1, action[..., None]).squeeze(-1)
