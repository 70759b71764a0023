"""Networks from elsewhere that give probabilities or Q values for logits, which their files do not tell."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from rldistill.core.heads import ActionHead, BernoulliHead, CategoricalHead
from rldistill.core.policy import Policy
from rldistill.core.spec import ObsPart, PolicySpec

EPSILON = 1e-8
"""Added to probabilities before their logarithm is taken."""


def gives_probabilities(policy: Policy) -> bool:
    """Whether the numbers of each choice are from 0 to 1, and sum to 1, for 64 made-up observations.

    The last layer may be a softmax by any name, or in another model; what it gives tells it apart. For on-off actions
    numbers from 0 to 1 are enough, for they are the outputs of a sigmoid.
    """
    head = policy.spec.head
    if not (head.discrete and head.stochastic):
        return False
    with torch.no_grad():
        said = policy(made_up(policy.spec, 64))[0].params
    if not ((said >= 0) & (said <= 1)).all():
        return False
    sums = torch.stack([choice.sum(1) for choice in torch.split(said, list(head.nvec), 1)])
    return isinstance(head, BernoulliHead) or bool((sums - 1).abs().max() < 1e-3)


def logits(head: ActionHead, probabilities: Tensor) -> Tensor:
    """log(p + 1e-8), and for on-off actions log(p + 1e-8) - log(1 - p + 1e-8)."""
    said = (probabilities + EPSILON).log()
    return said - (1 - probabilities + EPSILON).log() if isinstance(head, BernoulliHead) else said


def warn_of_logits(name: str, head: ActionHead) -> None:
    """Warn that nobody said what the numbers mean, where Q values would look the same."""
    if isinstance(head, CategoricalHead):
        warnings.warn(
            f"{name}: its numbers are taken as logits; if they are Q values, say head=q_values, and head=categorical "
            "if they are not",
            stacklevel=2,
        )


def made_up(spec: PolicySpec, count: int) -> Tensor:
    """Observations `[B, *obs_shape]` of an environment that is not at hand, always the same."""
    generator = torch.Generator().manual_seed(0)
    drawn = [_drawn(part, count, generator) for part in spec.entries.values()]
    return torch.cat([entry.reshape(count, -1).float() for entry in drawn], 1) if spec.parts else drawn[0]


def _drawn(part: ObsPart, count: int, generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, part.dtype)
    if dtype.is_floating_point:
        return torch.randn(count, *part.shape, generator=generator)
    return torch.randint(0, min(part.nvec, default=256), (count, *part.shape), generator=generator).to(dtype)
