"""Action masks: legal actions for policies that do not know of them, for exploration and for random play.

An environment with `action_masks()` shows them as an entry of its observation, so that they are stored with it and
reach every student.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.heads import MASK
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.encoding import split_parts
from rldistill.policies.ensemble import Ensemble


@dataclasses.dataclass(frozen=True)
class ActionMaskedPolicy:
    """A policy that takes observations without the mask, confined to what the mask allows."""

    policy: Policy
    env_spec: PolicySpec

    @property
    def spec(self) -> PolicySpec:
        """The policy's, with the mask among the entries, which are in the environment's order."""
        inner, env = self.policy.spec, self.env_spec.entries
        own = {**(inner.entries if inner.parts else {"obs": inner.entries[""]}), MASK: env[MASK]}
        keys = [*(key for key in env if key in own), *(key for key in own if key not in env)]
        whole = PolicySpec.of_parts(tuple((key, own[key]) for key in keys), inner.head)
        return dataclasses.replace(whole, view=inner.view, env_kwargs=inner.env_kwargs)

    def initial_state(self, batch_size: int) -> Tensor | None:
        """The policy's."""
        return self.policy.initial_state(batch_size)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What the policy says of the rest of the observation, with illegal actions ruled out."""
        entries = split_parts(obs, self.env_spec) if isinstance(obs, Tensor) else dict(obs)
        mask = entries.pop(MASK)
        inner = self.policy.spec
        if inner.parts:
            shown = torch.cat([entries[key].reshape(len(mask), -1).float() for key in inner.entries], 1)
        else:
            shown = entries["obs"].to(getattr(torch, inner.obs_dtype))
        output, state = self.policy(shown, state)
        return output.masked(mask), state


def with_action_mask(policy: Policy, env_spec: PolicySpec) -> Policy:
    """The policy, confined to legal actions where the environment tells them and it does not look.

    Of an ensemble every member is, so that no vote is lost to an action that nobody can take.
    """
    if isinstance(policy, Ensemble):
        return dataclasses.replace(
            policy, members=tuple(with_action_mask(member, env_spec) for member in policy.members)
        )
    return ActionMaskedPolicy(policy, env_spec) if has_mask(env_spec) and not has_mask(policy.spec) else policy


def has_mask(spec: PolicySpec) -> bool:
    """Whether observations say which actions are legal."""
    return MASK in spec.entries


def random_legal(obs: NDArray[Any], spec: PolicySpec, rng: np.random.Generator) -> NDArray[np.int64]:
    """One legal action for each observation, uniformly: `[B]` for one choice, `[B, A]` otherwise."""
    mask = split_parts(torch.from_numpy(obs), spec)[MASK].bool().numpy()
    parts = np.split(mask, np.cumsum(spec.head.choices)[:-1], axis=1)
    chosen = [(rng.random(part.shape) * part).argmax(1) for part in parts]
    return chosen[0] if spec.head.single_choice else np.stack(chosen, 1)
