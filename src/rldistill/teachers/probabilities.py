"""Detection of probabilities among the outputs of networks, whose files do not name them."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from rldistill.core.heads import ActionHead, BernoulliHead, CategoricalHead
from rldistill.core.policy import Policy
from rldistill.core.spec import ObsPart, PolicySpec

EPSILON = 1e-8
"""Added to probabilities before the logarithm."""
NUM_TRIALS = 64


def returns_probabilities(policy: Policy) -> bool:
    """Return True if the outputs of each choice are probabilities for synthetic observations.

    The last layer may be a softmax by any name, or in another model, so the outputs decide. For bits, numbers from 0
    to 1 are enough: the outputs of a sigmoid.
    """
    head = policy.spec.head
    if not (head.discrete and head.stochastic):
        return False
    with torch.no_grad():
        params = policy(synthetic_observations(policy.spec, NUM_TRIALS))[0].params
    if not ((params >= 0) & (params <= 1)).all():
        return False
    sums = torch.stack([choice.sum(1) for choice in torch.split(params, list(head.nvec), 1)])
    return isinstance(head, BernoulliHead) or bool((sums - 1).abs().max() < 1e-3)


def to_logits(head: ActionHead, probabilities: Tensor) -> Tensor:
    """Return log(p + 1e-8), and for bits log(p + 1e-8) - log(1 - p + 1e-8)."""
    logits = (probabilities + EPSILON).log()
    return logits - (1 - probabilities + EPSILON).log() if isinstance(head, BernoulliHead) else logits


def warn_of_logits(name: str, head: ActionHead) -> None:
    """Warn that outputs are read as logits, since Q values cannot be told apart from them."""
    if isinstance(head, CategoricalHead):
        warnings.warn(
            f"{name}: its outputs are read as logits. Set head=q_values if they are Q values, or head=categorical.",
            stacklevel=2,
        )


def synthetic_observations(spec: PolicySpec, count: int) -> Tensor:
    """Return random observations `[B, *obs_shape]` with a fixed seed, for which no environment is needed."""
    generator = torch.Generator().manual_seed(0)
    entries = [_random(part, count, generator) for part in spec.entries.values()]
    return torch.cat([entry.reshape(count, -1).float() for entry in entries], 1) if spec.parts else entries[0]


def _random(part: ObsPart, count: int, generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, part.dtype)
    if dtype.is_floating_point:
        return torch.randn(count, *part.shape, generator=generator)
    return torch.randint(0, min(part.nvec, default=256), (count, *part.shape), generator=generator).to(dtype)
