"""Policies around teachers whose actions differ from those of the environment: only some of them, or without tanh."""

import dataclasses
import math

from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.heads import ILLEGAL, ActionHead, DeterministicHead, GaussianHead, SquashedGaussianHead
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.actor_critic import ActorPolicy
from rldistill.teachers.fingerprint import IdentifiedWrapper


@dataclasses.dataclass(frozen=True)
class SubsetPolicy(IdentifiedWrapper):
    """Policy for some of the `num_actions` actions of an environment, whose numbers are `actions`."""

    num_actions: int
    actions: tuple[int, ...]

    def __post_init__(self) -> None:
        head = self.policy.spec.head
        if not head.single_choice or head.nvec != (len(self.actions),):
            raise ConfigError(
                f"teacher.actions: {len(self.actions)} numbers for a {head.kind} head of {sum(head.nvec)}. Give one "
                "number for each action of the teacher."
            )

    @property
    def spec(self) -> PolicySpec:
        """The spec of the policy with all actions."""
        spec = self.policy.spec
        return dataclasses.replace(spec, head=dataclasses.replace(spec.head, nvec=(self.num_actions,)))

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the policy's output, in which further actions are illegal, and its next state."""
        output, state = self.policy(obs, state)
        params = output.params.new_full((*output.params.shape[:-1], self.num_actions), ILLEGAL)
        params[..., list(self.actions)] = output.params
        return PolicyOutput(self.spec.head, params, output.value, output.features), state


def with_actions(spec: PolicySpec | None, actions: tuple[int, ...]) -> PolicySpec:
    """Return the spec of a teacher that has only these actions of the environment."""
    if spec is None or not spec.head.single_choice:
        raise ConfigError("teacher.actions: the environment has no single choice among actions. Remove the option.")
    if len(set(actions)) < len(actions) or max(actions) >= spec.head.nvec[0]:
        limit = spec.head.nvec[0] - 1
        raise ConfigError(f"teacher.actions: found {list(actions)}, expected different numbers from 0 to {limit}.")
    return dataclasses.replace(spec, head=dataclasses.replace(spec.head, nvec=(len(actions),)))


@dataclasses.dataclass(frozen=True)
class SquashedPolicy(IdentifiedWrapper):
    """Policy whose means pass through tanh, scaled to the bounds of actions."""

    @property
    def spec(self) -> PolicySpec:
        """The spec of the policy, with a head that squashes if that is Gaussian."""
        spec = self.policy.spec
        return dataclasses.replace(spec, head=squashed_head(spec.head))

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the policy's output with squashed actions, and its next state."""
        output, state = self.policy(obs, state)
        head = squashed_head(output.head)
        params = output.params
        if isinstance(head, DeterministicHead):
            params = head.as_kind("squashed_gaussian").bounded(params)
        return dataclasses.replace(output, head=head, params=params), state


def squashed_head(head: ActionHead) -> ActionHead:
    """Return the head of squashed actions: deterministic actions stay so, since they have no parameters of noise."""
    return head.as_kind("squashed_gaussian") if isinstance(head, GaussianHead) else head


def squashed(policy: Policy, path: str) -> Policy:
    """Return a policy whose actions are squashed; raise ConfigError if they are discrete, or have no bounds."""
    head = policy.spec.head
    if head.discrete or isinstance(head, SquashedGaussianHead):
        reason = "has discrete actions" if head.discrete else "squashes its actions itself"
        raise ConfigError(f"teacher.squash: {path} {reason}. Remove the option.")
    if not all(map(math.isfinite, (*head.low, *head.high))):
        raise ConfigError(f"teacher.squash: the actions of {path} have no bounds to scale tanh to. Remove the option.")
    if isinstance(policy, ActorPolicy) and isinstance(head, GaussianHead):  # whose folder can then be saved
        policy.spec = dataclasses.replace(policy.spec, head=squashed_head(head))
        return policy
    return SquashedPolicy(policy)
