"""Committee of teachers, which labels with the outputs of all members and acts by one of them in each episode."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.heads import ActionHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.policies.ensemble import Ensemble


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
