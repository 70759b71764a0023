"""Several policies that act as one, and so can teach as one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rldistill.errors import ConfigError, SpecMismatchError
from rldistill.types import ActionHead, Obs, Policy, PolicyOutput, PolicySpec

Vote = Literal["mean", "majority", "confidence"]


@dataclass(frozen=True)
class Ensemble:
    """A policy made of policies that see the same and act in the same space.

    `mean` is the mean of their probabilities (as log-probabilities), of their Q values, or of their actions.
    `majority` is the share of votes for each action, `confidence` the mean of their probabilities weighted with
    1 - H / log A, H each one's entropy; both need one choice among actions. Where the heads differ, Q values count as
    probabilities with a temperature of half their action gap.

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
            member.spec.require_same_input(first, f"member {number} of the ensemble", "member 0")
        if self.vote != "mean" and first.head.kind not in ("categorical", "q_values"):
            raise SpecMismatchError(f"ensemble: {self.vote} needs one choice among actions, not {first.head.kind}")

    @property
    def spec(self) -> PolicySpec:
        """The members' spec, with the head of what they say together."""
        return dataclasses.replace(self.members[0].spec, head=self._head)

    @property
    def _head(self) -> ActionHead:
        heads = {member.spec.head.kind for member in self.members}
        head = self.members[0].spec.head
        if not head.discrete:
            return dataclasses.replace(head, kind="deterministic")
        if self.vote == "mean" and len(heads) == 1:
            return head
        return dataclasses.replace(head, kind="categorical")

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
        if head.kind != "categorical":
            return PolicyOutput(head, torch.stack([output.params for output in outputs]).mean(0))
        chances = torch.stack([_probabilities(output) for output in outputs])
        if self.vote == "majority":
            chances = F.one_hot(chances.argmax(-1), chances.shape[-1]).to(chances.dtype)
        weight = torch.ones_like(chances[..., :1])
        if self.vote == "confidence":
            entropy = torch.special.entr(chances).sum(-1, keepdim=True)
            weight = 1 - entropy / torch.log(torch.tensor(float(chances.shape[-1]))) + 1e-6
        mean = (weight * chances).sum(0) / weight.sum(0)
        return PolicyOutput(head, mean.clamp_min(1e-8).log())


def _probabilities(output: PolicyOutput) -> Tensor:
    params = output.params
    if output.head.kind == "q_values":
        best = params.topk(2, -1).values
        gap = (best[..., 0] - best[..., 1]).mean().clamp_min(1e-6)
        params = params / (gap / 2)
    return params.softmax(-1)
