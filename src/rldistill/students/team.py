"""Team of many agents, in which each agent observes and acts on its own."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.fields import PYTHON_ONLY, OneOf, validated_dataclass
from rldistill.core.heads import MASK
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.joint import IDENTITY, AgentView, JointPolicy, agent_views
from rldistill.policies.network import NetworkPolicy
from rldistill.students.keras import Keras
from rldistill.students.mlp import Mlp
from rldistill.students.student import Fit, Student, build_student, capability

MEMBERS: dict[str, type] = {}
"""Students that can be members of a team, by name; filled where all students are listed."""
Sharing = Literal["all", "type", "none"]
AnyMember = Annotated[Student, OneOf("type", MEMBERS, methods=("build",))]


@validated_dataclass
class Team(Student):
    """One student for each agent, or for agents that share one; no agent observes what another does.

    It learns from a teacher of joint actions: the label of an agent is the marginal distribution of its part of the
    action, which is exact, since all joint heads are products over their parts.

    Attributes:
        student: Family of the members; not keras.
        sharing: `all` agents share a network, or those of the same `type`, or `none`.
        identity: Let agents that share a network observe their own number, one-hot.
        members: The fitted member of each network.
    """

    student: AnyMember = Mlp()
    sharing: Sharing = "type"
    identity: bool = False
    members: Annotated[tuple[AnyMember, ...], PYTHON_ONLY] = ()

    @property
    def fit(self) -> Fit:  # type: ignore[override]
        """The fit of each member by the method of its family."""
        return "team"

    @property
    def recurrent(self) -> bool:  # type: ignore[override]
        """True if the members have a state."""
        return bool(capability(self.student, "recurrent"))

    @property
    def trains_from_reward(self) -> bool:  # type: ignore[override]
        """True if PPO can train the members."""
        return bool(capability(self.student, "trains_from_reward"))

    def __post_init__(self) -> None:
        # The file of a team holds no `policy.keras`, and to build a member anew would import the function of its model.
        if any(isinstance(student, Keras) for student in (self.student, *self.members)):
            raise ConfigError("students: a keras student cannot be a member of a team. Use another family.")

    def groups(self, spec: PolicySpec) -> dict[str, list[str]]:
        """Return the names of the agents of each network, by the name of the network."""
        groups: dict[str, list[str]] = {}
        for agent in spec.agents:
            key = {"all": "all", "type": agent.type, "none": agent.name}[self.sharing]
            groups.setdefault(key, []).append(agent.name)
        return groups

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the team for `spec`, with new weights; raise SpecMismatchError for agents that cannot share."""
        groups = self.groups(spec)
        views = agent_views(spec, list(groups.values()), self.identity)
        by_name = {view.agent.name: view for view in views}
        students = self.members or (self.student,) * len(groups)
        if len(students) != len(groups):
            raise ConfigError(f"students: the team has {len(students)} members for {len(groups)} networks.")
        pairs = zip(students, groups.items(), strict=True)
        members = {name: build_student(student, by_name[agents[0]].spec) for student, (name, agents) in pairs}
        return TeamPolicy(self, spec, members, groups)

    def assembled(self, spec: PolicySpec, members: Sequence[NetworkPolicy]) -> NetworkPolicy:
        """Return the team of fitted members, one for each network, in order."""
        groups = self.groups(spec)
        config = dataclasses.replace(self, members=tuple(member.config for member in members))
        return TeamPolicy(config, spec, dict(zip(groups, members, strict=True)), groups).eval()


class TeamPolicy(NetworkPolicy):
    """Joint policy whose action has a part from each member; its state is that of all agents, one after another.

    Attributes:
        members: Networks, in the order of `groups`.
        groups: Names of the agents of each network, by its name.
        views: Views of all agents, in order.
        joint: The same policy as one of single agents.
    """

    def __init__(
        self, config: Team, spec: PolicySpec, members: dict[str, NetworkPolicy], groups: dict[str, list[str]]
    ) -> None:
        super().__init__(config, spec, nn.Identity(), 0, nn.Identity())
        self.normalizes_itself = True
        self.members = nn.ModuleList(members.values())  # a ModuleDict allows neither dots in names nor `type`
        self.groups = groups
        self.views = agent_views(spec, list(groups.values()), config.identity)
        network = {agent: members[name] for name, agents in groups.items() for agent in agents}
        self.joint = JointPolicy(tuple(self.views), tuple(network[view.agent.name] for view in self.views))

    def member(self, network: str) -> NetworkPolicy:
        """Return the network of a group of agents."""
        member = self.members[[*self.groups].index(network)]
        assert isinstance(member, NetworkPolicy)
        return member

    def views_of(self, network: str) -> list[AgentView]:
        """Return the views of the agents that share a network."""
        return [view for view in self.views if view.agent.name in self.groups[network]]

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return the states of all agents, `[B, S]`; None if no member has one."""
        return self.joint.initial_state(batch_size)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the joint output for joint observations `[B, ...]`, and the next state."""
        return self.joint(obs, state)

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Set the moments of the observations of all members; of agents that share one, their common moments."""
        widths = [part.width for _, part in self.spec.parts]
        keys = [key for key, _ in self.spec.parts]
        means, stds = (dict(zip(keys, moment.split_with_sizes(widths), strict=True)) for moment in (mean, std))
        for network in self.groups:
            member, views = self.member(network), self.views_of(network)
            if member.normalizes_itself:
                continue
            own_means, own_stds = member.obs_mean.clone(), member.obs_std.clone()
            offset = 0
            for alias, part in member.spec.entries.items():
                if alias not in (IDENTITY, MASK):
                    joint = [next(key for key, own in view.keys.items() if alias in ("", own)) for view in views]
                    centers = torch.stack([means[key] for key in joint])
                    squares = torch.stack([stds[key] for key in joint]) ** 2 + (centers - centers.mean(0)) ** 2
                    columns = slice(offset, offset + part.width)
                    own_means.view(-1)[columns] = centers.mean(0)
                    own_stds.view(-1)[columns] = squares.mean(0).sqrt()
                offset += part.width
            member.standardize(own_means, own_stds)
