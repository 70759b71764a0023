"""Policies around other policies: action masks for policies without one, and images with channels last."""

import dataclasses

import torch
from torch import Tensor

from rldistill.core.entries import join_tensors, split_parts
from rldistill.core.heads import MASK
from rldistill.core.policy import Policy, PolicyOutput, PolicyWrapper
from rldistill.core.spec import CHANNELS_FIRST, Obs, PolicySpec
from rldistill.policies.ensemble import Ensemble


@dataclasses.dataclass(frozen=True)
class ActionMaskedPolicy(PolicyWrapper):
    """Policy for observations without a mask, restricted to the legal actions of observations with one."""

    env_spec: PolicySpec

    @property
    def spec(self) -> PolicySpec:
        """The policy's spec with the mask among its entries, in the order of the environment."""
        inner, env = self.policy.spec, self.env_spec.entries
        own = {**(inner.entries if inner.parts else {"obs": inner.entries[""]}), MASK: env[MASK]}
        keys = [*(key for key in env if key in own), *(key for key in own if key not in env)]
        spec = PolicySpec.from_parts(tuple((key, own[key]) for key in keys), inner.head)
        return dataclasses.replace(spec, view=inner.view, env_kwargs=inner.env_kwargs, agents=self.env_spec.agents)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the policy's output with illegal actions ruled out, and its next state."""
        entries = split_parts(obs, self.env_spec)
        mask = entries.pop(MASK)
        inner = self.policy.spec
        if not inner.parts:
            output, state = self.policy(entries["obs"].to(getattr(torch, inner.obs_dtype)), state)
        else:
            output, state = self.policy(join_tensors(entries, inner), state)
        return output.masked(mask), state


def with_action_mask(policy: Policy, env_spec: PolicySpec) -> Policy:
    """Restrict a policy without a mask to the legal actions of an environment with one.

    In an ensemble every member is restricted, so that no member votes for an illegal action.
    """
    if isinstance(policy, Ensemble):
        members = tuple(with_action_mask(member, env_spec) for member in policy.members)
        return dataclasses.replace(policy, members=members)
    needs_mask = MASK in env_spec.entries and MASK not in policy.spec.entries
    return ActionMaskedPolicy(policy, env_spec) if needs_mask else policy


@dataclasses.dataclass(frozen=True)
class ChannelsLastPolicy(PolicyWrapper):
    """Policy for `[B, C, H, W]`, applied to the `[B, H, W, C]` of the entries `images`."""

    images: tuple[str, ...]

    @property
    def spec(self) -> PolicySpec:
        """The policy's spec with the shapes of the recorded images."""
        spec = self.policy.spec
        view = tuple(wrapper for wrapper in spec.view if wrapper != CHANNELS_FIRST)
        shape = _channels_to_back(spec.obs_shape) if "" in self.images else spec.obs_shape
        parts = tuple(
            (key, dataclasses.replace(part, shape=_channels_to_back(part.shape)) if key in self.images else part)
            for key, part in spec.parts
        )
        return dataclasses.replace(spec, obs_shape=shape, parts=parts, view=view)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the policy's output for the images with channels first, and its next state."""
        spec = self.spec
        if not spec.parts:
            assert isinstance(obs, Tensor)
            return self.policy(obs.movedim(-1, 1).contiguous(), state)
        entries = split_parts(obs, spec).items()
        transposed = {k: v.movedim(-1, 1).contiguous() if k in self.images else v for k, v in entries}
        return self.policy(transposed, state)


def _channels_to_back(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0])
