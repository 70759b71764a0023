"""Several policies that act as one, and so can teach as one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rldistill.core.errors import ConfigError, SpecMismatchError, shown
from rldistill.core.heads import MASK, ActionHead, BernoulliHead, MultiCategoricalHead
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import Obs, PolicySpec

Vote = Literal["mean", "majority", "confidence"]

LEAST = 1e-8
"""Probabilities below it count as this when their logarithm is taken."""

ROUNDING = 1e-5
"""Of a Q value: differences below it are those of float32, and depend on the size of the batch."""


@dataclass(frozen=True)
class Ensemble:
    """A policy made of policies that see the same and act in the same space.

    `mean` is the mean of their probabilities, of each part of an action where it has several (as logits), of their Q
    values, or of their actions. `majority` is the share of votes for each action, `confidence` the mean of their
    probabilities weighted with 1 - H / log A, H each one's entropy over the A legal actions; both need one choice among
    actions. Actions that members rule out get no probability, no vote and no say.

    Where Q values meet logits, or are weighted by confidence, they count as the probabilities softmax(Q(s, .) / T(s))
    with T(s) = 1/2 mean_a (max Q(s, .) - Q(s, a)), the mean over the legal actions but the best: half the action gap,
    if there are two. It depends on the state alone, does not change with the scale of the rewards, and leaves two
    actions that are nearly as good nearly as likely.

    Attributes:
        members: the policies.
        vote: how they are put together.
    """

    members: tuple[Policy, ...]
    vote: Vote = "mean"

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("ensemble: expected at least one member")
        first = self.members[0].spec
        for number, member in enumerate(self.members[1:], 1):
            member.spec.unmasked.require_same_input(first.unmasked, f"member {number} of the ensemble", "member 0")
            if member.spec.view != first.view:
                here, there = (", ".join(map(str, spec.view)) or "no wrapper" for spec in (member.spec, first))
                raise SpecMismatchError(
                    f"member {number} of the ensemble and member 0 do not fit: what they see of the environment is "
                    f"behind {here} for member {number}, behind {there} for member 0"
                )
            for key, value in member.spec.env_kwargs:
                if (other := self._env_kwargs[key]) != value:
                    raise SpecMismatchError(
                        f"ensemble: member {number} was trained with {key}={shown(value)}, one before it with "
                        f"{shown(other)}; expected members of one environment"
                    )
        if self.vote != "mean" and not first.head.single_choice:
            raise SpecMismatchError(f"ensemble: {self.vote} needs one choice among actions, not {first.head.kind}")

    @property
    def spec(self) -> PolicySpec:
        """The members' spec, with the head of what they say together, and all that their environments are made with.

        Where some look at which actions are legal, it is theirs; `with_action_mask` in
        `rldistill.policies.masking` lets all of them look.
        """
        specs = [member.spec for member in self.members]
        shared = next((spec for spec in specs if MASK in spec.entries), specs[0])
        return dataclasses.replace(shared, head=self._head, env_kwargs=tuple(self._env_kwargs.items()))

    @property
    def _env_kwargs(self) -> dict[str, Any]:
        """By name; where members differ, the first one's."""
        return {key: value for member in reversed(self.members) for key, value in member.spec.env_kwargs}

    @property
    def _head(self) -> ActionHead:
        heads = {member.spec.head.kind for member in self.members}
        head = self.members[0].spec.head
        if not head.discrete:
            return head.neutral
        if self.vote == "mean" and len(heads) == 1:
            return head
        return head.as_kind("categorical")

    def initial_state(self, batch_size: int) -> Tensor | None:
        """What the members remember at first, `[B, N]`, one after the other; None if none of them does."""
        return self._joined([member.initial_state(batch_size) for member in self.members])

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What the members say together of a batch of observations."""
        said = [member(obs, own) for member, own in zip(self.members, self._split(state), strict=True)]
        return self._together([output for output, _ in said]), self._joined([own for _, own in said])

    @staticmethod
    def _joined(states: list[Tensor | None]) -> Tensor | None:
        flat = [state.flatten(1) for state in states if state is not None]
        return torch.cat(flat, 1) if flat else None

    def _split(self, state: Tensor | None) -> list[Tensor | None]:
        if state is None:
            return [None] * len(self.members)
        parts, at = [], 0
        for member in self.members:
            own = member.initial_state(1)
            parts.append(None if own is None else state[:, at : at + own.numel()].reshape(-1, *own.shape[1:]))
            at += 0 if own is None else own.numel()
        return parts

    def _together(self, outputs: list[PolicyOutput]) -> PolicyOutput:
        head = self._head
        if not head.discrete:
            return PolicyOutput(head, torch.stack([output.mode() for output in outputs]).mean(0))
        said = PolicyOutput(head, self._params(head, outputs))
        masks = [output.mask for output in outputs if output.mask is not None]
        return said.masked(torch.stack(masks).all(0)) if masks else said

    def _params(self, head: ActionHead, outputs: list[PolicyOutput]) -> Tensor:
        """The head's numbers, `[B, P]`, before any action is ruled out."""
        params = torch.stack([output.params for output in outputs])
        if head.action_values:
            return params.mean(0)
        if isinstance(head, BernoulliHead):
            return _log(params.sigmoid().mean(0)) - _log((-params).sigmoid().mean(0))
        if isinstance(head, MultiCategoricalHead):
            parts = params.split_with_sizes(head.nvec, -1)
            return torch.cat([_log(part.softmax(-1).mean(0)) for part in parts], -1)
        if self.vote == "majority":
            votes = torch.stack([output.mode() for output in outputs])
            return _log(F.one_hot(votes, params.shape[-1]).to(params.dtype).mean(0))
        chances = torch.stack([_probabilities(output) for output in outputs])
        weight = torch.ones_like(chances[..., :1])
        if self.vote == "confidence":
            weight = torch.stack([_confidence(*pair) for pair in zip(chances, outputs, strict=True)])
        return _log((weight * chances).sum(0) / weight.sum(0))


def _log(chances: Tensor) -> Tensor:
    return chances.clamp_min(LEAST).log()


def _legal(output: PolicyOutput) -> Tensor:
    return torch.ones_like(output.params, dtype=torch.bool) if output.mask is None else output.mask


def _probabilities(output: PolicyOutput) -> Tensor:
    """`[B, A]`, 0 for actions that are ruled out."""
    legal = _legal(output)
    logits = output.params
    if output.head.action_values:
        logits = logits / _temperature(logits, legal)
    return logits.masked_fill(~legal, -torch.inf).softmax(-1)


def _temperature(values: Tensor, legal: Tensor) -> Tensor:
    """T(s) of Q values, `[B, 1]`; values that differ by rounding alone count as equal."""
    best = values.masked_fill(~legal, -torch.inf).amax(-1, keepdim=True)
    others = (legal.sum(-1, keepdim=True) - 1).clamp_min(1)
    gap = (best - values).masked_fill(~legal, 0).sum(-1, keepdim=True) / others
    return (gap / 2).clamp_min(1e-6).maximum(ROUNDING * best.abs())


def _confidence(chances: Tensor, output: PolicyOutput) -> Tensor:
    """1 - H / log A, `[B, 1]`; 1 where there is no choice, and never quite 0."""
    most = _legal(output).sum(-1, keepdim=True).clamp_min(2).log()
    entropy: Tensor = torch.special.entr(chances).sum(-1, keepdim=True)
    return 1 - entropy / most + 1e-6
