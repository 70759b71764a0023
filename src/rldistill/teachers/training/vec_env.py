"""Environments as Stable-Baselines3 steps them, one slot for each or for each agent, and its replay with hindsight."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv

from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError
from rldistill.core.heads import MASK
from rldistill.core.spec import MAX_EPISODE_STEPS, EnvConfig, ObsPart, PolicySpec, part_sizes
from rldistill.envs.atari import is_atari
from rldistill.envs.entries import FlatDict
from rldistill.envs.seeding import Purpose, episode_seed
from rldistill.envs.spaces import action_space, spec_from_env
from rldistill.envs.vector import SeededVectorEnv, make_vector_env
from rldistill.policies.joint import AgentView, JointPolicy, agent_views
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Team
from rldistill.teachers.training.config import Agents

GOALS = ("achieved_goal", "desired_goal")


class SteppingVecEnv(VecEnv):
    """VecEnv that runs `while_stepping` during each step.

    Environments that step in their own threads, such as those of ale-py, then cost the learner no time.

    Attributes:
        num_agents: Slots of each environment.
    """

    def __init__(self, env: SeededVectorEnv, own_rewards: bool = False) -> None:
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.env, self._own_rewards = env, own_rewards
        self.num_agents = 1
        self.while_stepping: Callable[[], None] = lambda: None

    def reset(self) -> Any:
        """Reset all environments."""
        return self.env.reset()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Start a step."""
        self.env.send(actions)

    def step_wait(self) -> Any:
        """Run `while_stepping`, then finish the step."""
        self.while_stepping()
        step = self.env.recv()
        infos: list[dict[str, Any]] = [{} for _ in range(self.env.num_envs)]
        for slot, last_obs in zip(step.ended, step.last_obs, strict=True):
            is_truncated = bool(step.truncated[slot] and not step.terminated[slot])
            infos[slot] = {"terminal_observation": last_obs, "TimeLimit.truncated": is_truncated}
        reward = step.own_reward if self._own_rewards else step.reward
        return step.obs, reward.astype(np.float32), step.terminated | step.truncated, infos

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return None for each environment: SB3 reads attributes of wrappers, and there are none."""
        return [None] * len([*self._get_indices(indices)])

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raise AttributeError."""
        raise AttributeError(f"{attr_name} of a vector environment cannot be set")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method of environments that step in this process; raise AttributeError for others."""
        envs = getattr(self.env.group, "envs", [])
        if not envs:
            raise AttributeError(f"a vector environment has no method {method_name} for each environment")
        return [envs[index].get_wrapper_attr(method_name)(*args, **kwargs) for index in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Return False for each environment."""
        return [False] * len(list(self._get_indices(indices)))


class EntriesVecEnv(SteppingVecEnv):
    """VecEnv of dict observations with pictures, in the entries that SB3's MultiInputPolicy takes."""

    def __init__(self, env: SeededVectorEnv, spec: PolicySpec, own_rewards: bool = False) -> None:
        super().__init__(env, own_rewards)
        self._spec, self._spaces = spec, {key: _entry_space(part) for key, part in spec.parts}
        # A list, since Gymnasium sorts the keys of a dict.
        VecEnv.__init__(self, env.num_envs, spaces.Dict([*self._spaces.items()]), env.single_action_space)

    def reset(self) -> Any:
        """Reset all environments."""
        return self._entries(super().reset())

    def step_wait(self) -> Any:
        """Finish the step."""
        obs, reward, done, infos = super().step_wait()
        for info in filter(None, infos):
            last = self._entries(info["terminal_observation"][None])
            info["terminal_observation"] = {key: entry[0] for key, entry in last.items()}
        return self._entries(obs), reward, done, infos

    def _entries(self, obs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        entries = split_parts(torch.from_numpy(obs), self._spec)
        return {key: entries[key].numpy().astype(space.dtype) for key, space in self._spaces.items()}


def _entry_space(part: ObsPart) -> spaces.Space[Any]:
    if part.nvec:
        sizes = np.array(part.nvec)
        return spaces.MultiDiscrete(sizes.reshape(part.shape)) if part.shape else spaces.Discrete(part.nvec[0])
    if part.is_picture and part.dtype == "uint8":
        return spaces.Box(0, 255, part.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, part.shape, np.float32)


class AgentVecEnv(SteppingVecEnv):
    """VecEnv with a slot for each agent of each environment, so that all agents learn one policy.

    An agent observes its own entry, and its reward is that of the team.
    """

    def __init__(self, env: SeededVectorEnv, views: list[AgentView], own_rewards: bool = False) -> None:
        super().__init__(env, own_rewards)
        spec, joint = views[0].spec, views[0].joint
        self.num_agents, self._shape = len(views), spec.obs_shape
        sizes = part_sizes(joint.parts, joint.obs_dtype == "uint8")
        ends = dict(zip(joint.entries, np.cumsum(sizes), strict=True))
        size = int(np.prod(spec.obs_shape))
        self._columns = np.stack([np.arange(ends[key] - size, ends[key]) for view in views for key in view.keys])
        is_picture = spec.obs_dtype == "uint8"
        low, high, dtype = (0, 255, np.uint8) if is_picture else (-np.inf, np.inf, np.float32)
        observations = spaces.Box(low, high, spec.obs_shape, dtype)
        VecEnv.__init__(self, env.num_envs * len(views), observations, action_space(spec.head))

    def reset(self) -> Any:
        """Reset all environments; return the observations of all agents, those of one environment side by side."""
        return self._rows(super().reset())

    def step_async(self, actions: NDArray[Any]) -> None:
        """Start a step of all agents."""
        super().step_async(actions.reshape(self.env.num_envs, -1))

    def step_wait(self) -> Any:
        """Finish the step."""
        obs, reward, done, infos = super().step_wait()
        rows: list[dict[str, Any]] = []
        for info in infos:
            last = self._rows(info["terminal_observation"][None]) if info else [None] * self.num_agents
            rows += [{**info, "terminal_observation": own} if info else {} for own in last]
        return self._rows(obs), reward.repeat(self.num_agents), done.repeat(self.num_agents), rows

    def _rows(self, obs: NDArray[Any]) -> NDArray[Any]:
        return obs[:, self._columns].reshape(-1, *self._shape)


def shared_views(env: EnvConfig) -> list[AgentView]:
    """Return the views of all agents, which can learn one policy.

    Raises:
        ConfigError: There is one agent, or the agents differ, or they observe several entries or legal actions.
    """
    spec = spec_from_env(env)
    if not spec.agents:
        raise ConfigError("train.agents: the environment has one agent. Remove it.")
    views = agent_views(spec)
    for view in views:
        if (view.spec.head, view.spec.entries) != (views[0].spec.head, views[0].spec.entries):
            raise ConfigError(
                f"train.agents: {views[0].agent.name} and {view.agent.name} have different observations or actions, so "
                "that they cannot share a policy. Use central."
            )
    if MASK in spec.entries or views[0].spec.parts or views[0].spec.nvec:
        raise ConfigError(
            "train.agents: a shared policy observes one Box, without legal actions or agents that leave. Use central."
        )
    return views


def policy_spec(env: EnvConfig, agents: Agents) -> PolicySpec:
    """Return the spec of the policy that is trained: that of each agent if it is shared."""
    return shared_views(env)[0].spec if agents == "shared" else spec_from_env(env)


def shared_policy(policy: NetworkPolicy, env: EnvConfig) -> NetworkPolicy:
    """Return the joint policy in which all agents act by `policy`."""
    views = shared_views(env)
    spec = JointPolicy(tuple(views), (policy,) * len(views)).spec
    return Team(sharing="all").assembled(spec, [policy])


def training_env(
    env: EnvConfig, num_envs: int, seed: int, purpose: Purpose, agents: Agents = "central"
) -> SteppingVecEnv:
    """Return environments of SB3; rewards of Atari are clipped to their signs in training."""
    views = shared_views(env) if agents == "shared" else None
    if is_atari(env.id) and purpose == "train":
        env = replace(env, kwargs={**env.kwargs, "reward_clipping": True})
    max_steps = MAX_EPISODE_STEPS if purpose == "evaluate" else None
    vector = make_vector_env(env, num_envs, lambda *episode: seed_of(seed, purpose, *episode), max_steps=max_steps)
    own_rewards, spec = purpose == "evaluate", spec_from_env(env)
    if views:
        return AgentVecEnv(vector, views, own_rewards)
    has_pictures = bool(spec.parts) and spec.obs_dtype == "uint8"
    return EntriesVecEnv(vector, spec, own_rewards) if has_pictures else SteppingVecEnv(vector, own_rewards)


def seed_of(seed: int, purpose: Purpose, slot: int, episode: int) -> int:
    """Return the seed of an episode, other than those of the final evaluation, so that these do not select a policy."""
    return episode_seed(seed, purpose, 1 if purpose == "evaluate" else 0, 0, slot, episode)


class HindsightReplay(HerReplayBuffer):
    """HerReplayBuffer of SB3 (Andrychowicz 2017, arXiv 1707.01495) that takes and returns flat observations."""

    def __init__(
        self, buffer_size: int, observation_space: spaces.Box, action_space: spaces.Space[Any], **settings: Any
    ) -> None:
        sizes = {key: math.prod(part.shape) for key, part in goal_parts(settings["env"]).items()}
        self._ends = np.cumsum([*sizes.values()])[:-1]
        # A list, since Gymnasium sorts the keys of a dict, and those of an OrderedDict are not sorted.
        parts = spaces.Dict([(key, spaces.Box(-np.inf, np.inf, (size,), np.float32)) for key, size in sizes.items()])
        super().__init__(buffer_size, parts, action_space, **settings)

    def add(self, obs: Any, next_obs: Any, *rest: Any) -> None:
        """Add one step of all environments."""
        super().add(self._split(obs), self._split(next_obs), *rest)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:  # type: ignore[override]
        """Return a batch, most of it with goals that were reached later in the episode."""
        batch = super().sample(batch_size, env)
        obs, next_obs = (
            torch.cat([parts[key] for key in self.observations], 1)
            for parts in (batch.observations, batch.next_observations)
        )
        return ReplayBufferSamples(obs, batch.actions, next_obs, batch.dones, batch.rewards)

    def _split(self, obs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.observations, np.split(obs, self._ends, axis=1), strict=True))


def goal_parts(vector: SteppingVecEnv) -> dict[str, ObsPart]:
    """Return the entries of the observations; raise ValueError if the environment has no goals."""
    env = getattr(vector.env.group, "envs", [None])[0]
    inner = getattr(env, "env", None)
    parts = dict(inner.parts) if isinstance(inner, FlatDict) else {}
    has_goals = all(key in parts for key in GOALS) and not isinstance(vector, EntriesVecEnv)
    if not has_goals or not env.has_wrapper_attr("compute_reward"):
        raise ValueError(
            "HerReplayBuffer needs an environment with goals: observations with achieved_goal and desired_goal, but no "
            "pictures, and a method compute_reward. Leave out replay_buffer_class."
        )
    return parts
