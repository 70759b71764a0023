"""Ensembles and committees of policies, which act, and so can teach, as one policy."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rldistill.core.errors import ConfigError, SpecMismatchError, short_repr
from rldistill.core.heads import ILLEGAL, MASK, ActionHead, BernoulliHead, MultiCategoricalHead
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.joint import joint_state, step_all

Vote = Literal["mean", "majority", "confidence"]

MIN_PROBABILITY = 1e-8
"""Lower bound of probabilities before their logarithm is taken."""
ROUNDING_ERROR = 1e-5
"""Relative float32 error of Q values, which depends on the size of the batch."""


@dataclass(frozen=True)
class Ensemble:
    """Policy made of policies with the same observations and actions.

    `mean` is the mean of their probabilities, for each part of an action with several parts (as logits), of their Q
    values, or of their actions. `majority` is the share of votes for each action, `confidence` the mean of their
    probabilities weighted with 1 - H / log A, H the entropy of each member over the A legal actions; both need one
    choice among actions. Illegal actions get no probability and no vote.

    Q values that are combined with logits, or weighted by confidence, are converted to the probabilities
    softmax(Q(s, .) / T(s)) with T(s) = 1/2 mean_a (max Q(s, .) - Q(s, a)), the mean over the legal actions but the
    best: half the action gap, if there are two. T depends on the state alone and does not change with the scale of the
    rewards; two actions with nearly equal values get nearly equal probabilities.

    Attributes:
        members: The policies.
        vote: The combination of their outputs.
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
                    f"ensemble: member {number} observes the environment through {here}, member 0 through {there}. "
                    "Use members with the same wrappers."
                )
            for key, value in member.spec.env_kwargs:
                if (first_value := self._env_kwargs[key]) != value:
                    raise SpecMismatchError(
                        f"ensemble: member {number} was trained with {key}={short_repr(value)}, an earlier one with "
                        f"{short_repr(first_value)}. Use members of one environment."
                    )
        if self.vote != "mean" and not first.head.single_choice:
            raise SpecMismatchError(f"ensemble: {self.vote} needs one choice among actions, not {first.head.kind}")

    @property
    def spec(self) -> PolicySpec:
        """The members' spec with the head of the combination and the env_kwargs of all members.

        If some members take action masks, it is the spec of these; `with_action_mask` in
        `rldistill.policies.wrappers` gives all of them the mask.
        """
        specs = [member.spec for member in self.members]
        shared = next((spec for spec in specs if MASK in spec.entries), specs[0])
        return dataclasses.replace(shared, head=self._head, env_kwargs=tuple(self._env_kwargs.items()))

    @property
    def _env_kwargs(self) -> dict[str, Any]:
        """Keyword arguments by name; the first member's where members differ."""
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
        """Return the members' states side by side, `[B, N]`; None if no member is recurrent."""
        return joint_state(self.members, batch_size)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the combined output for a batch of observations, and the next state."""
        outputs, after = step_all(self.members, [obs] * len(self.members), state)
        return self._combined(outputs), after

    def _combined(self, outputs: list[PolicyOutput]) -> PolicyOutput:
        head = self._head
        if not head.discrete:
            return PolicyOutput(head, torch.stack([output.mode() for output in outputs]).mean(0))
        combined = PolicyOutput(head, self._params(head, outputs))
        masks = [output.mask for output in outputs if output.mask is not None]
        return combined.masked(torch.stack(masks).all(0)) if masks else combined

    def _params(self, head: ActionHead, outputs: list[PolicyOutput]) -> Tensor:
        """Return the head's parameters `[B, P]` with no action ruled out."""
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
        probabilities, weights = zip(*map(_probabilities, outputs), strict=True)
        weight = torch.stack(weights) if self.vote == "confidence" else torch.ones_like(params[..., :1])
        return _log((weight * torch.stack(probabilities)).sum(0) / weight.sum(0))


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(MIN_PROBABILITY).log()


def _probabilities(output: PolicyOutput) -> tuple[Tensor, Tensor]:
    """Return probabilities `[B, A]`, 0 for illegal actions, and their confidence `[B, 1]`."""
    legal = output.params > ILLEGAL / 2 if output.mask is None else output.mask
    logits, num_legal = output.params, legal.sum(-1, keepdim=True)
    if output.head.action_values:
        best = logits.masked_fill(~legal, -torch.inf).amax(-1, keepdim=True)
        gap = (best - logits).masked_fill(~legal, 0).sum(-1, keepdim=True) / (num_legal - 1).clamp_min(1)
        # Differences within the rounding error count as none.
        logits = logits / (gap / 2).clamp_min(1e-6).maximum(ROUNDING_ERROR * best.abs())
    probabilities = logits.masked_fill(~legal, -torch.inf).softmax(-1)
    entropy: Tensor = torch.special.entr(probabilities).sum(-1, keepdim=True)
    # 1 where one action is legal, and never quite 0.
    return probabilities, 1 - entropy / num_legal.clamp_min(2).log() + 1e-6


@dataclass(frozen=True)
class Committee(Ensemble):
    """Ensemble whose output also carries the params of every member, `PolicyOutput.members`.

    A dataset stores them once; `distill.weighting` makes one label of them. Its own params are those of the ensemble:
    the mean of the members' probabilities, or of their actions.

    Attributes:
        names: The names of the members.
    """

    names: tuple[str, ...] = ()

    @property
    def spec(self) -> PolicySpec:
        """The spec of the ensemble, with the members."""
        kinds = [member.spec.head.kind for member in self.members]
        return dataclasses.replace(super().spec, members=tuple(zip(self.names, kinds, strict=True)))

    @property
    def _head(self) -> ActionHead:
        return self.members[0].spec.head.neutral

    def _combined(self, outputs: list[PolicyOutput]) -> PolicyOutput:
        members = torch.cat([output.params for output in outputs], -1)
        return dataclasses.replace(super()._combined(outputs), members=members)


def member_outputs(members: Tensor, heads: Sequence[ActionHead]) -> list[PolicyOutput]:
    """Return the outputs of the members of a committee, whose params `[..., sum P]` follow one another."""
    parts = members.split_with_sizes([head.num_params for head in heads], -1)
    return [PolicyOutput(head, params) for head, params in zip(heads, parts, strict=True)]


def followed_actions(
    output: PolicyOutput,
    heads: Sequence[ActionHead],
    member: NDArray[np.int8],
    select: Callable[[PolicyOutput], NDArray[Any]],
) -> NDArray[Any]:
    """Return the action of the member with the number `member` `[B]` for each observation, as `select` chooses it."""
    assert output.members is not None
    actions = np.stack([select(own) for own in member_outputs(output.members, heads)])
    return np.asarray(actions[member, np.arange(len(member))])
