"""Hindsight experience replay for environments with goals, whose observations are joined into one vector."""

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from rldistill.core.spec import ObsPart
from rldistill.envs.entries import FlatDict
from rldistill.teachers.training.vec_env import EntriesVecEnv, SteppingVecEnv

GOALS = ("achieved_goal", "desired_goal")


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
