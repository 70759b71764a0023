"""Observation wrappers of single agents within a joint observation."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from pydantic import ValidationError

from rldistill.core.entries import find_entry, walk
from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.core.fields import explain, read
from rldistill.core.spec import Wrapper, WrapperField
from rldistill.envs.entries import CONTAINERS
from rldistill.envs.multi_agent import JointEnv
from rldistill.envs.views import Reset, SideBySide, Tap
from rldistill.envs.wrappers import Env, Step

Wrap = Callable[[Env, tuple[Wrapper, ...]], Env]
"""Function that puts wrappers around an environment."""
AGENT_VIEWS = "AgentViews"
"""Name of the wrapper whose keyword arguments are the wrappers of single agents, by their name or type."""


class AgentTap(Tap):
    """Environment of one agent: its own entries of the observation, and its own part of the action."""

    def __init__(self, env: Env, joint: JointEnv, name: str) -> None:
        super().__init__(env)
        entries, prefix = dict(walk(env.observation_space, CONTAINERS)), f"{name}."
        own = {key.removeprefix(prefix): space for key, space in entries.items() if key.startswith(prefix)}
        if name not in entries and not own:
            raise ConfigError(f"env.wrappers: AgentViews: the observation has no entry of the agent {name}.")
        self._joint, self._name = joint, name
        self._keys = [*own] if name not in entries else None
        self.observation_space = spaces.Dict(own) if name not in entries else entries[name]
        self.action_space = joint.action_spaces[name]

    def show(self, result: Reset | Step, action: Any = None) -> None:
        """Keep the agent's part of the result of a reset, or of a step with a joint action."""
        obs, name = result[0], self._name
        if self._keys is None:
            own = find_entry(obs, name)
        else:
            own = {key: find_entry(obs, f"{name}.{key}") for key in self._keys}
        super().show((own, *result[1:]), None if action is None else self._joint.split(np.asarray(action))[name])


class AgentViews(SideBySide):
    """Wrapper by which some of many agents observe through wrappers of their own, and the others as before."""

    def __init__(self, env: Env, taps: Mapping[str, AgentTap], views: Mapping[str, Env]) -> None:
        shared = Tap(env)
        super().__init__(env, [shared, *taps.values()], [shared, *views.values()])
        own = dict(entry for name, view in views.items() for entry in walk(view.observation_space, CONTAINERS, name))
        rest = {
            key: space
            for key, space in walk(env.observation_space, CONTAINERS)
            if not any(key == name or key.startswith(f"{name}.") for name in views)
        }
        self._names, self._own, self._rest = [*views], own, [*rest]
        self.observation_space = spaces.Dict({**rest, **own})

    def _pack(self, observations: list[Any]) -> dict[str, Any]:
        joint, named = observations[0], dict(zip(self._names, observations[1:], strict=True))
        rest = {key: find_entry(joint, key) for key in self._rest}
        return rest | {key: find_entry(named, key) for key in self._own}


def wrappers_of_agents(views: Mapping[str, Any]) -> dict[str, tuple[Wrapper, ...]]:
    """Return the wrappers in the arguments of `AgentViews`; raise ConfigError for other values."""
    try:
        return read(dict[str, tuple[WrapperField, ...]], views)  # type: ignore[no-any-return]
    except ValidationError as error:
        problem = explain(error.errors()[0])
        raise ConfigError(
            f"env.wrappers: {AGENT_VIEWS}.{problem}. List wrappers by name, or with name and kwargs."
        ) from None


def agent_views_of(env: Env, wrap: Wrap, views: Mapping[str, Any]) -> AgentViews:
    """Return an environment of many agents with the wrappers of each, by its name or its type, or of `all`.

    Raises:
        ConfigError: There is one agent, no such agent, or no list of wrappers.
    """
    where = f"env.wrappers: {AGENT_VIEWS}"
    joint = env.unwrapped
    if not isinstance(joint, JointEnv):
        raise ConfigError(f"{where}: the environment has one agent. List its wrappers themselves.")
    known = {key for agent in joint.agents for key in agent.keys}
    if unknown := [name for name in views if name not in known]:
        raise ConfigError(f"{where}: there is no agent {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
    wrappers = wrappers_of_agents(views)
    taps, wrapped = dict[str, AgentTap](), dict[str, Env]()
    for agent in joint.agents:
        key = next((key for key in agent.keys if key in wrappers), None)
        if key is not None:
            taps[agent.name] = AgentTap(env, joint, agent.name)
            wrapped[agent.name] = wrap(taps[agent.name], wrappers[key])
    return AgentViews(env, taps, wrapped)
