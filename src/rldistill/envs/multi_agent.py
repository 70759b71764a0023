"""Environments of many agents as one environment with a joint observation and a joint action."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces import flatdim
from numpy.typing import NDArray

from rldistill.core.entries import find_entry, walk
from rldistill.core.errors import ConfigError, did_you_mean, failure, short_repr
from rldistill.core.fields import import_name
from rldistill.core.heads import MASK
from rldistill.core.spec import ALIVE, AgentSpec, Wrapper
from rldistill.envs.entries import CONTAINERS

PREFIX = "pettingzoo:"
TeamReward = Literal["equal", "sum", "mean"]
Entries = dict[str, spaces.Space[Any]]
STATE = "state"


def is_multi_agent(env_id: str) -> bool:
    """Return True if an id names an environment of PettingZoo."""
    return env_id.startswith(PREFIX)


def is_published(env_id: str) -> bool:
    """Return True if an id names an environment of the packages PettingZoo and mpe2, without code of the user."""
    return (
        re.fullmatch(r"pettingzoo:(mpe2|(pettingzoo\.)?(atari|butterfly|classic|sisl))\.\w+_v\d+", env_id) is not None
    )


def agent_type(agent: str) -> str:
    """Return the type of an agent, which is its name without the number at its end."""
    return re.sub(r"_\d+$", "", agent)


class JointEnv(gymnasium.Env[Any, Any]):
    """PettingZoo's parallel environment as one environment: one policy acts for all agents.

    The observation is a dict with the observation of each agent under its name (or `agent.key` for the entries of a
    dict or tuple), zeros for an agent that has left. The action is that of all agents in the order of
    `possible_agents`: a MultiDiscrete, or the concatenation of their Boxes.

    Args:
        parallel: Environment of PettingZoo's parallel API.
        team: Type or name of the agents whose reward is the reward; all agents by default.
        team_reward: `equal` if all agents of the team receive the same reward, or the `sum` or `mean` of theirs.
        alive: Allow agents to leave before the episode ends. The entry `alive` then shows who is there, and the mask of
            legal actions leaves the others their first action.
        state: Add the environment's `state()` as an entry, which students do not observe.

    Attributes:
        agents: Name, type, number of action parts and team of each agent.
        action_spaces: Action space of each agent by its name.
    """

    def __init__(
        self,
        parallel: Any,
        team: str | None = None,
        team_reward: TeamReward = "equal",
        alive: bool = False,
        state: bool = False,
    ) -> None:
        self.parallel, self._reward, self._alive, self._state = parallel, team_reward, alive, state
        self.metadata = getattr(parallel, "metadata", {}) or {}
        self.render_mode = getattr(parallel, "render_mode", None)
        names = [str(name) for name in parallel.possible_agents]
        if not names:
            raise ConfigError("env.id: the environment has no possible_agents. List all agents there.")
        if team_reward not in get_args(TeamReward):
            raise ConfigError(
                f"env.kwargs: team_reward is {short_repr(team_reward)}. Use {', '.join(get_args(TeamReward))}."
            )
        self._team = [name for name in names if team in (None, name, agent_type(name))]
        if not self._team:
            types = ", ".join(dict.fromkeys(agent_type(name) for name in names))
            raise ConfigError(f"env.kwargs: there is no team {team!r}. Use one of the types {types}.")
        self.action_spaces = {name: parallel.action_space(name) for name in names}
        self.action_space = _joint_actions(self.action_spaces)
        self._obs: dict[str, Entries] = {
            name: dict(walk(parallel.observation_space(name), CONTAINERS, name)) for name in names
        }
        self._masked = alive and not isinstance(self.action_space, spaces.Box)
        entries: Entries = {key: space for own in self._obs.values() for key, space in own.items()}
        masks = [key for name in names if (key := f"{name}.{MASK}") in entries]
        self._mask_sizes = {name: flatdim(space) for name, space in self.action_spaces.items()}
        self._masked |= bool(masks)
        for key in masks:
            del entries[key]
        if state:
            entries[STATE] = parallel.state_space
        if alive:
            entries[ALIVE] = spaces.MultiBinary(len(names))
        if self._masked:
            entries[MASK] = spaces.MultiBinary(sum(self._mask_sizes.values()))
        self.observation_space = spaces.Dict(entries)
        self.agents = tuple(
            AgentSpec(name, agent_type(name), _num_parts(self.action_spaces[name]), name in self._team)
            for name in names
        )
        self._returns = dict.fromkeys(names, 0.0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        obs, _ = self.parallel.reset(seed=seed, options=options)
        self._returns = dict.fromkeys(self._returns, 0.0)
        return self._joint(obs, self.parallel.agents), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step all agents that are there with their parts of the joint action."""
        present = list(self.parallel.agents)
        parts = self.split(np.asarray(action))
        obs, rewards, terminated, truncated, _ = self.parallel.step({name: parts[name] for name in present})
        for name in present:
            self._returns[name] += float(rewards.get(name, 0.0))
        left = [name for name in present if terminated.get(name) or truncated.get(name)]
        over = not self.parallel.agents or len(left) == len(present)
        if left and not over and not self._alive:
            raise ConfigError(
                f"env: {left[0]} left before the episode ended. Set env.kwargs: {{alive: true}}, which adds an entry "
                "with the agents that are there, and masks the others."
            )
        ends = bool(present) and all(terminated.get(name, False) for name in present)
        # PettingZoo empties `agents` at the end of an episode, whose last observation is still that of its agents.
        remaining = [name for name in present if ends or not terminated.get(name)] if over else self.parallel.agents
        info = {f"return_{name}": total for name, total in self._returns.items()}
        return self._joint(obs, remaining), self._team_reward(rewards), over and ends, over and not ends, info

    def render(self) -> Any:
        """Return a picture of the environment."""
        return self.parallel.render()

    def close(self) -> None:
        """Close the environment."""
        self.parallel.close()

    def _team_reward(self, rewards: Mapping[str, float]) -> float:
        own = [float(rewards[name]) for name in self._team if name in rewards]
        if not own:
            return 0.0
        if self._reward == "equal" and not np.allclose(own, own[0], rtol=1e-6, atol=1e-9):
            raise ConfigError(
                f"env: the rewards of the team differ ({', '.join(f'{reward:g}' for reward in own)}). Set env.kwargs: "
                "{team_reward: sum} or {team_reward: mean}, or choose a team with {team: NAME}."
            )
        return float(np.sum(own) if self._reward == "sum" else np.mean(own))

    def split(self, action: NDArray[Any]) -> dict[str, Any]:
        """Return the action of each agent from their joint action."""
        parts: dict[str, Any] = {}
        start = 0
        for name, space in self.action_spaces.items():
            part = action[start : (start := start + _num_parts(space))]
            if isinstance(space, spaces.Discrete):
                parts[name] = int(part[0]) + int(space.start)
            else:
                parts[name] = (part.reshape(space.shape) + getattr(space, "start", 0)).astype(space.dtype)
        return parts

    def _joint(self, obs: Mapping[str, Any], agents: Sequence[str]) -> dict[str, Any]:
        """Return the joint observation of `agents`, with zeros for the others."""
        joint: dict[str, Any] = {}
        masks = []
        for name, entries in self._obs.items():
            present = name in agents and name in obs
            mask = np.ones(self._mask_sizes[name], np.int8)
            if not present:
                mask = _first_choice(self.action_spaces[name])
            for key, space in entries.items():
                value = find_entry({name: obs[name]}, key) if present else None
                if key == f"{name}.{MASK}":
                    mask = mask if value is None else np.asarray(value, np.int8).ravel()
                else:
                    joint[key] = np.zeros(space.shape or (), space.dtype) if value is None else value
            masks.append(mask)
        if self._state:
            joint[STATE] = self.parallel.state()
        if self._alive:
            joint[ALIVE] = np.array([name in agents for name in self._obs], np.int8)
        if self._masked:
            joint[MASK] = np.concatenate(masks)
        return joint


def make_joint_env(make: Callable[..., Any], wrappers: Sequence[Wrapper] = (), **kwargs: Any) -> JointEnv:
    """Return the joint environment of `make(**kwargs)`, within wrappers of SuperSuit.

    Raises:
        ConfigError: The result is not an environment of PettingZoo's parallel API, and cannot be converted.
    """
    own = {key: kwargs.pop(key) for key in [*kwargs] if key in inspect.signature(JointEnv).parameters}
    env = make(**kwargs)
    if not hasattr(env, "possible_agents"):
        raise ConfigError(f"env.id: expected an environment of PettingZoo, found {type(env).__name__}.")
    if hasattr(env, "agent_iter"):
        from pettingzoo.utils import aec_to_parallel

        try:
            env = aec_to_parallel(env)
        except AssertionError:  # whose text is of several lines
            raise ConfigError(
                "env.id: its agents take turns, and PettingZoo cannot convert it to the parallel API. Use one with "
                "parallel_env, or set metadata['is_parallelizable'] if its state changes at the end of a cycle only."
            ) from None
    for wrapper in wrappers:
        env = import_name(wrapper.name, "env.wrappers")(env, **wrapper.kwargs)
    return JointEnv(env, **own)


def pettingzoo_constructor(env_id: str) -> Callable[..., Any]:
    """Return the constructor of `pettingzoo:MODULE`, its `parallel_env` or else its `env`, or `pettingzoo:MODULE:NAME`.

    Raises:
        ConfigError: There is no such module, or it has no environment.
    """
    name = env_id.removeprefix(PREFIX)
    if ":" in name:
        if not callable(make := import_name(name, "env.id")):
            raise ConfigError(f"env.id: {env_id}: expected a function, found {type(make).__name__}.")
        return make  # type: ignore[no-any-return]
    for module in (name, f"pettingzoo.{name}"):
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(str(error.name)):
                raise ConfigError(f"env.id: {env_id} needs {error.name}. Install it.") from None
            continue
        except Exception as error:
            raise ConfigError(f"env.id: {env_id} cannot be imported ({failure(error)}).") from error
        for function in ("parallel_env", "env"):
            if callable(make := getattr(imported, function, None)):
                return make  # type: ignore[no-any-return]
        raise ConfigError(f"env.id: {env_id}: the module {module} has neither parallel_env nor env.")
    if hint := _nearest_module(name):
        raise ConfigError(f"env.id: there is no module {name!r}.{hint}")
    raise ConfigError(
        f"env.id: there is no module {name!r}. Install its package (pip install 'rldistill[multiagent]' has PettingZoo "
        "and mpe2), or correct the name: such as pettingzoo:mpe2.simple_spread_v3."
    )


def _nearest_module(name: str) -> str:
    """Return the hint at an installed module of the same package, such as another version; else an empty string."""
    package, _, module = name.rpartition(".")
    for parent in (package, f"pettingzoo.{package}") if package else ():
        try:
            found = importlib.import_module(parent)
        except ImportError:
            continue
        modules = [entry.name for entry in pkgutil.iter_modules(getattr(found, "__path__", []))]
        if hint := did_you_mean(module, modules):
            return hint
    return ""


def _num_parts(space: spaces.Space[Any]) -> int:
    return 1 if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or ()))


def _first_choice(space: spaces.Space[Any]) -> NDArray[np.int8]:
    """Return a mask that leaves an agent that has left the first option of each choice."""
    return np.concatenate([np.arange(size) == 0 for size in _num_choices(space)] or [np.zeros(0)]).astype(np.int8)


def _num_choices(space: Any) -> NDArray[np.int64]:
    """Return the number of options of each choice of an agent; none for a Box."""
    return np.ravel(space.n if isinstance(space, spaces.Discrete) else getattr(space, "nvec", [])).astype(np.int64)


def _joint_actions(actions: Mapping[str, spaces.Space[Any]]) -> spaces.MultiDiscrete | spaces.Box:
    """Return the space of the joint action; raise ConfigError for kinds that do not join."""
    kinds = set(map(type, actions.values()))
    if kinds <= {spaces.Discrete, spaces.MultiDiscrete}:
        return spaces.MultiDiscrete(np.concatenate([_num_choices(space) for space in actions.values()]))
    if kinds == {spaces.Box}:
        low, high = (
            np.concatenate([getattr(space, bound).ravel() for space in actions.values()]).astype(np.float32)
            for bound in ("low", "high")
        )
        return spaces.Box(low, high)
    listing = ", ".join(f"{name}: {space}" for name, space in actions.items())
    raise ConfigError(f"env.id: the actions of the agents do not join ({listing}). Use all discrete, or all Box.")
