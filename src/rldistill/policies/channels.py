"""Recorded pictures with channels last, for policies that take them with channels first."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.envs.config import CHANNELS_FIRST
from rldistill.policies.encoding import split_parts


@dataclasses.dataclass(frozen=True)
class ChannelsLast:
    """A policy that is shown `[B, H, W, C]` and turns it to the `[B, C, H, W]` that it takes, entry by entry."""

    policy: Policy
    turned: tuple[str, ...]

    @property
    def spec(self) -> PolicySpec:
        """The policy's, but for the order of its pictures' dimensions."""
        spec = self.policy.spec
        view = tuple(wrapper for wrapper in spec.view if wrapper != CHANNELS_FIRST)
        shape = _to_back(spec.obs_shape) if "" in self.turned else spec.obs_shape
        parts = tuple(
            (key, dataclasses.replace(part, shape=_to_back(part.shape)) if key in self.turned else part)
            for key, part in spec.parts
        )
        return dataclasses.replace(spec, obs_shape=shape, parts=parts, view=view)

    def initial_state(self, batch_size: int) -> Tensor | None:
        """The policy's."""
        return self.policy.initial_state(batch_size)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What the policy says of the pictures turned round."""
        spec = self.spec
        if not spec.parts:
            assert isinstance(obs, Tensor)
            return self.policy(obs.movedim(-1, 1).contiguous(), state)
        entries = split_parts(obs, spec) if isinstance(obs, Tensor) else obs
        turned = {k: v.movedim(-1, 1).contiguous() if k in self.turned else v for k, v in entries.items()}
        return self.policy(turned, state)


def channels_last(policy: Policy, recorded: PolicySpec) -> Policy:
    """The policy, shown pictures as they were `recorded` where it takes them the other way round."""
    turned = policy.spec.turned_round(recorded)
    return ChannelsLast(policy, turned) if turned else policy


def _to_back(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0])
