"""Loading of several teachers of one student, which may observe the environment differently."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.fields import validated_dataclass
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import TEACHER_VIEWS, EnvConfig, Obs, ObsPart, Parts, PolicySpec, Wrapper, WrapperField
from rldistill.envs.spaces import spec_from_env
from rldistill.policies.ensemble import Committee
from rldistill.teachers.fingerprint import IdentifiedWrapper
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble


@validated_dataclass
class CommitteeMember(SavedTeacher):
    """One of several teachers: a saved teacher, and the view that it has of the environment.

    Attributes:
        view: Wrappers through which this teacher alone observes the environment. Agents of Stable-Baselines3 with an
            `args.yml` have theirs already.
    """

    view: tuple[WrapperField, ...] = ()


AnyMember = CommitteeMember | TeacherEnsemble | Policy


@dataclasses.dataclass(frozen=True)
class ViewPolicy(IdentifiedWrapper):
    """Policy that observes the environment through the wrappers `view`."""

    view: tuple[Wrapper, ...]

    @property
    def spec(self) -> PolicySpec:
        """The spec of the policy with its view."""
        return dataclasses.replace(self.policy.spec, view=self.view)


@dataclasses.dataclass(frozen=True)
class EntryPolicy(IdentifiedWrapper):
    """Policy that observes the entry `name` of a dict with the observations of all teachers."""

    name: str
    entries: Parts
    view: Wrapper

    @property
    def spec(self) -> PolicySpec:
        """The spec of the policy with the observations of all teachers."""
        spec = PolicySpec.from_parts(self.entries, self.policy.spec.head)
        return dataclasses.replace(spec, view=(self.view,), env_kwargs=self.policy.spec.env_kwargs)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output of the policy for its own observation, and its next state."""
        own = split_parts(obs, self.spec)[self.name]
        return self.policy(own.to(getattr(torch, self.policy.spec.obs_dtype)), state)


def load_committee(teachers: Mapping[str, AnyMember], env: EnvConfig) -> Committee:
    """Load several teachers of one student.

    Raises:
        SpecMismatchError: Their actions differ, or their observations through the same wrappers.
    """
    members = {}
    for name, teacher in teachers.items():
        try:
            members[name] = _load(teacher, env.view_of("teacher"))
        except (ConfigError, SpecMismatchError) as error:
            problem = str(error).removeprefix("teacher: ").replace("env.wrappers: ", "view: ", 1)
            key = problem.removeprefix("teacher")  # ".actions: ..." of one of its options
            raise type(error)(f"teachers.{name}{key if key.startswith('.') else f': {problem}'}") from None
    try:
        return Committee(tuple(_side_by_side(members).values()), names=tuple(teachers))
    except SpecMismatchError as error:
        names = ", ".join(f"member {number} is {name}" for number, name in enumerate(teachers))
        raise SpecMismatchError(f"teachers: {str(error).removeprefix('ensemble: ')} ({names})") from None


def _load(teacher: AnyMember, env: EnvConfig) -> Policy:
    if not isinstance(teacher, CommitteeMember):
        return teacher.load(spec_from_env(env)) if isinstance(teacher, TeacherEnsemble) else teacher
    spec = spec_from_env(dataclasses.replace(env, wrappers=env.wrappers + teacher.view))
    policy = teacher.load(spec)
    if not teacher.view:
        return policy
    if policy.spec.view:
        raise ConfigError(f"view: {teacher.path} has its own, {', '.join(map(str, policy.spec.view))}. Remove the key.")
    policy.spec.require_same_input(spec, teacher.path, "the environment with its view")
    return ViewPolicy(policy, teacher.view)


def _side_by_side(members: dict[str, Policy]) -> dict[str, Policy]:
    """Return the policies as they are if all have the same view, else with the observations of all as input."""
    views = {name: member.spec.view for name, member in members.items()}
    if len(set(views.values())) == 1:
        return members
    for name, member in members.items():
        if member.spec.parts:
            raise SpecMismatchError(f"{name} observes a dict. Give all teachers the same wrappers.")
    entries = tuple(
        (name, ObsPart(spec.obs_shape, spec.obs_dtype, spec.nvec))
        for name, spec in ((name, member.spec) for name, member in members.items())
    )
    wrappers = {name: [dataclasses.asdict(wrapper) for wrapper in view] for name, view in views.items()}
    view = Wrapper(TEACHER_VIEWS, wrappers)
    return {name: EntryPolicy(member, name, entries, view) for name, member in members.items()}
