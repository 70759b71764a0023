"""Policies and their outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from rldistill.core.heads import ILLEGAL, ActionHead
from rldistill.core.spec import Obs, PolicySpec


@dataclass(frozen=True)
class PolicyOutput:
    """What a policy says of a batch of observations."""

    head: ActionHead
    params: Tensor
    value: Tensor | None = None
    features: Tensor | None = None
    mask: Tensor | None = None

    def masked(self, mask: Tensor) -> PolicyOutput:
        """The same with actions that are not legal ruled out: they are never chosen, and no loss sees them.

        Of `[..., sum(head.choices)]`: bits have two numbers each, and what is ruled out stands in their logits alone.
        """
        legal = mask.bool()
        if self.head.kind == "bernoulli":
            off, on = legal[..., ::2], legal[..., 1::2]
            return replace(self, params=self.params.masked_fill(~on, ILLEGAL).masked_fill(~off, -ILLEGAL))
        return replace(self, params=self.params.masked_fill(~legal, ILLEGAL), mask=legal)

    def to(self, device: torch.device) -> PolicyOutput:
        """Return the output with its tensors on `device`."""
        if self.params.device == device:
            return self
        others = (None if part is None else part.to(device) for part in (self.value, self.features, self.mask))
        return PolicyOutput(self.head, self.params.to(device), *others)

    def at(self, rows: Tensor) -> PolicyOutput:
        """What is said of some observations of a batch, without features."""
        parts = (None if part is None else part[rows] for part in (self.value, None, self.mask))
        return PolicyOutput(self.head, self.params[rows], *parts)

    def mode(self) -> Tensor:
        """The most likely, highest-valued or mean action: `[...]` for one integer, `[..., A]` otherwise."""
        kind, params = self.head.kind, self.params
        if self.mask is not None:
            params = params.masked_fill(~self.mask, -torch.inf)
        if kind in ("categorical", "q_values"):
            return params.argmax(-1)
        if kind == "multi_categorical":
            return torch.stack([part.argmax(-1) for part in params.split_with_sizes(self.head.nvec, -1)], -1)
        if kind == "bernoulli":
            return (params > 0).long()
        mean = params[..., : len(self.head.low)]
        return self.bounded(mean)

    def sample(self, generator: torch.Generator) -> Tensor:
        """An action drawn from the policy; of `q_values` and `deterministic` heads, the mode."""
        kind, params = self.head.kind, self.params
        if kind in ("q_values", "deterministic"):
            return self.mode()
        if self.mask is not None:
            params = params.masked_fill(~self.mask, -torch.inf)
        if kind == "categorical":
            return _gumbel_argmax(params, generator)
        if kind == "multi_categorical":
            return torch.stack(
                [_gumbel_argmax(part, generator) for part in params.split_with_sizes(self.head.nvec, -1)], -1
            )
        if kind == "bernoulli":
            return (torch.rand(params.shape, generator=generator) < params.sigmoid()).long()
        return self.bounded(self.draw(generator))

    def draw(self, generator: torch.Generator) -> Tensor:
        """A draw before it is brought within the bounds of the action: of a Gaussian; elsewhere the action itself."""
        if "gaussian" not in self.head.kind:
            return self.sample(generator)
        mean, log_std = self.params.chunk(2, -1)
        return mean + log_std.exp() * torch.randn(mean.shape, generator=generator)

    def bounded(self, action: Tensor) -> Tensor:
        """A draw as an action: clamped, or squashed into the bounds; a discrete one as it is."""
        if self.head.discrete:
            return action
        low, high = action.new_tensor(self.head.low), action.new_tensor(self.head.high)
        if self.head.kind == "squashed_gaussian":
            return low + (action.tanh() + 1) / 2 * (high - low)
        return action.clamp(low, high)


def _gumbel_argmax(logits: Tensor, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(logits.shape, generator=generator).clamp_min(1e-20)
    return (logits - (-uniform.log()).log()).argmax(-1)


class Policy(Protocol):
    """A teacher is a policy, a student is a policy."""

    @property
    def spec(self) -> PolicySpec: ...

    def initial_state(self, batch_size: int) -> Tensor | None: ...

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]: ...


@dataclass(frozen=True)
class ObsTransformPolicy:
    """A policy that is shown what `transform` makes of each batch of observations."""

    policy: Policy
    transform: Callable[[Tensor], Tensor]

    @property
    def spec(self) -> PolicySpec:
        """The policy's."""
        return self.policy.spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """The policy's."""
        return self.policy.initial_state(batch_size)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What the policy says of what it is shown."""
        assert isinstance(obs, Tensor)
        return self.policy(self.transform(obs), state)
