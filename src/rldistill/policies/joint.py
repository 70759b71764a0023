"""Joint policies of many agents: the part of each agent in a joint observation and a joint action."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rldistill.core.entries import first_entry, split_parts
from rldistill.core.errors import SpecMismatchError
from rldistill.core.heads import LARGEST, MASK, ActionHead, CategoricalHead, MultiCategoricalHead
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import AgentSpec, Obs, ObsPart, PolicySpec

IDENTITY = "agent"
"""Entry with the number of an agent, one-hot, in a network that several agents share."""
OWN = "obs"
"""Entry of an agent whose observation is no dict itself, beside a mask or an identity."""


@dataclass(frozen=True)
class AgentView:
    """Part of one agent in joint observations and joint actions.

    Attributes:
        joint: Spec of the joint policy.
        agent: The agent.
        first: Number of its first action part.
        identity: Its number among the agents that share a network, and their count; None if it does not observe it.
    """

    joint: PolicySpec
    agent: AgentSpec
    first: int
    identity: tuple[int, int] | None = None

    @cached_property
    def keys(self) -> dict[str, str]:
        """The names of the agent's own entries, by their names in the joint observation."""
        name = self.agent.name
        if name in self.joint.entries:
            return {name: OWN}
        prefix = f"{name}."
        return {key: key.removeprefix(prefix) for key, _ in self.joint.parts if key.startswith(prefix)}

    @cached_property
    def spec(self) -> PolicySpec:
        """The spec of a policy of this agent alone."""
        entries = self.joint.entries
        own = {alias: entries[key] for key, alias in self.keys.items()}
        if not own:
            raise SpecMismatchError(f"students: the observation has no entry of the agent {self.agent.name}.")
        head = self.head_part(self.joint.head)
        if self.identity is not None:
            own[IDENTITY] = ObsPart((), "int64", (self.identity[1],))
        if MASK in entries:
            own[MASK] = ObsPart((sum(head.choices),), entries[MASK].dtype)
        if [*own] == [OWN]:
            part = own[OWN]
            return PolicySpec(part.shape, part.dtype, head, nvec=part.nvec)
        return PolicySpec.from_parts(tuple(own.items()), head)

    def observe(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the entries of the agent's own observation, `[B, ...]`, from those of a joint one."""
        own = {alias: entries[key] for key, alias in self.keys.items()}
        if self.identity is not None:
            count = len(next(iter(own.values())))
            own[IDENTITY] = torch.full((count,), self.identity[0], device=next(iter(own.values())).device)
        if MASK in entries:
            own[MASK] = entries[MASK][:, self.mask_part]
        return own

    @property
    def mask_part(self) -> slice:
        """The agent's part of a joint mask of legal actions."""
        start = sum(self.joint.head.choices[: self.first])
        return slice(start, start + sum(self.spec.head.choices))

    @property
    def parts(self) -> slice:
        """The agent's parts of a joint action."""
        return slice(self.first, self.first + self.agent.num_parts)

    def action(self, joint_action: Tensor) -> Tensor:
        """Return the agent's part `[...]` or `[..., A]` of joint actions `[..., A]`."""
        own = joint_action[..., self.parts]
        return own.squeeze(-1) if self.spec.head.single_choice else own

    def param_columns(self, head: ActionHead) -> list[int]:
        """Return the columns of the agent's parameters in those of a joint head."""
        if head.discrete:
            start = sum(head.nvec[: self.first])
            return [*range(start, start + sum(head.nvec[self.parts]))]
        size = len(head.low)
        starts = range(0, head.num_params, size)  # of the means, then of the log standard deviations
        return [column for start in starts for column in range(start, start + size)[self.parts]]

    def head_part(self, head: ActionHead) -> ActionHead:
        """Return the head of the agent's part of an action."""
        if not head.discrete:
            return replace(head, low=head.low[self.parts], high=head.high[self.parts])
        nvec = head.nvec[self.parts]
        return MultiCategoricalHead(nvec) if len(nvec) > 1 else CategoricalHead(nvec)


def agent_views(spec: PolicySpec, groups: Sequence[Sequence[str]] = (), identity: bool = False) -> list[AgentView]:
    """Return the view of each agent, in order; `groups` are the agents that share a network.

    Raises:
        SpecMismatchError: The policy is not one of several agents, or the agents of a group differ.
    """
    if not spec.agents:
        raise SpecMismatchError(
            "students: the environment has one agent, and a team student is for several. Use one of its families."
        )
    numbers = {name: (index, len(group)) for group in groups for index, name in enumerate(group) if len(group) > 1}
    views, first = [], 0
    for agent in spec.agents:
        views.append(AgentView(spec, agent, first, numbers.get(agent.name) if identity else None))
        first += agent.num_parts
    by_name = {view.agent.name: view for view in views}
    for group in groups:
        for name in group[1:]:
            a, b = by_name[group[0]], by_name[name]
            if (a.spec.head.neutral, a.spec.entries) != (b.spec.head.neutral, b.spec.entries):
                raise SpecMismatchError(
                    f"students: {group[0]} and {name} have different observations or actions, so that they cannot "
                    "share a network. Use sharing: type or sharing: none."
                )
    return views


def joint_params(outputs: Sequence[PolicyOutput], head: ActionHead) -> Tensor:
    """Return the parameters of a joint head, `[B, P]`, from the outputs of all agents in order.

    Q values and other outputs without a distribution become those of a certain choice where the joint head has one.
    """
    parts = [_as_distribution(output, head) for output in outputs]
    if head.discrete or head.num_params == len(head.low):
        return torch.cat(parts, -1)
    means, log_stds = zip(*(part.chunk(2, -1) for part in parts), strict=True)
    return torch.cat([*means, *log_stds], -1)


def _as_distribution(output: PolicyOutput, head: ActionHead) -> Tensor:
    if head.discrete and not output.head.stochastic:
        return output.head.as_kind("categorical").certain(output.mode())
    return output.params


def joint_state(policies: Sequence[Policy], batch_size: int) -> Tensor | None:
    """Return the initial states of several policies one after another, `[B, S]`; None if none has one."""
    states = [policy.initial_state(batch_size) for policy in policies]
    flat = [state.flatten(1) for state in states if state is not None]
    return torch.cat(flat, 1) if flat else None


def step_all(
    policies: Sequence[Policy], observations: Sequence[Obs], state: Tensor | None
) -> tuple[list[PolicyOutput], Tensor | None]:
    """Return the outputs of policies for their observations, and the next states one after another."""
    outputs, states, start = [], list[Tensor](), 0
    for policy, obs in zip(policies, observations, strict=True):
        own_state = policy.initial_state(len(first_entry(obs)))
        if own_state is not None and state is not None:
            stop = start + own_state[0].numel()
            own_state, start = state[:, start:stop].reshape(own_state.shape), stop
        output, after = policy(obs, own_state)
        outputs.append(output)
        states += [] if after is None else [after.flatten(1)]
    return outputs, torch.cat(states, 1) if states else None


@dataclass(frozen=True)
class JointPolicy:
    """Joint policy of policies for single agents, each of which gets the observations of its agent."""

    views: tuple[AgentView, ...]
    members: tuple[Policy, ...]

    def __post_init__(self) -> None:
        for view, member in zip(self.views, self.members, strict=True):
            member.spec.unmasked.require_same_input(view.spec.unmasked, "the policy", f"the agent {view.agent.name}")

    @property
    def spec(self) -> PolicySpec:
        """The spec of the joint policy."""
        joint = self.views[0].joint
        kinds = {member.spec.head.kind for member in self.members}
        continuous = len(kinds) == 1 and not joint.head.discrete
        return replace(joint, head=joint.head.as_kind(kinds.pop())) if continuous else joint

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return the states of all members, `[B, S]`; None if none has one."""
        return joint_state(self.members, batch_size)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the joint output for joint observations, and the next state."""
        entries = split_parts(obs, self.views[0].joint)
        observations: list[Obs] = []
        for view, member in zip(self.views, self.members, strict=True):
            own = view.observe(entries)
            keys = [key for key in own if key in member.spec.entries]
            observations.append({key: own[key] for key in keys} if keys else own[OWN])
        outputs, after = step_all(self.members, observations, state)
        head = self.spec.head
        joint = PolicyOutput(head, joint_params(outputs, head))
        return (joint.masked(entries[MASK]) if MASK in entries else joint), after


@dataclass(frozen=True)
class MixedTeam:
    """Joint policy in which `substitute` acts for the agents `replaced`, and `policy` for the others."""

    policy: Policy
    substitute: Policy
    replaced: tuple[str, ...]

    @property
    def spec(self) -> PolicySpec:
        """The spec of the first policy."""
        return self.policy.spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return the states of both policies, `[B, S]`; None if none has one."""
        return joint_state((self.policy, self.substitute), batch_size)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return a policy that certainly takes the most likely joint action, with the next state."""
        outputs, after = step_all((self.policy, self.substitute), (obs, obs), state)
        actions = [output.mode() for output in outputs]
        action = actions[0].clone()
        # A teacher of another library may not know the names of its agents.
        spec = self.spec if self.spec.agents else self.substitute.spec
        for view in agent_views(spec):
            if view.agent.name in self.replaced:
                action[..., view.parts] = actions[1][..., view.parts].to(action)
        head = self.spec.head.neutral
        return PolicyOutput(head, head.certain(action)), after


@dataclass(frozen=True)
class RandomTeam:
    """Joint policy whose actions are uniformly random, legal ones if there is a mask; normal ones without bounds."""

    spec: PolicySpec
    generator: torch.Generator

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return None."""
        return None

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return random params, whose mode is a random action, and None."""
        entries = split_parts(obs, self.spec)
        like, head = next(iter(entries.values())), self.spec.head.neutral
        size = len(like), head.num_params
        params = torch.rand(size, generator=self.generator)
        if not head.discrete:
            low, high = torch.tensor(head.low), torch.tensor(head.high)
            params = low + params * (high - low)
            if not bool((bounded := high - low < LARGEST).all()):
                params = torch.where(bounded, params, torch.randn(size, generator=self.generator))
        output = PolicyOutput(head, params.to(like.device))
        return (output.masked(entries[MASK]) if MASK in entries else output), None
