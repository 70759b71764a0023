"""Seeded vector environments as a VecEnv of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from rldistill.envs.vector import SeededVectorEnv


class SteppingVecEnv(VecEnv):
    """VecEnv that runs `while_stepping` during each step.

    Environments that step in their own threads, such as those of ale-py, then cost the learner no time.
    """

    def __init__(self, env: SeededVectorEnv) -> None:
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.env = env
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
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for slot, last_obs in zip(step.ended, step.last_obs, strict=True):
            is_truncated = bool(step.truncated[slot] and not step.terminated[slot])
            infos[slot] = {"terminal_observation": last_obs, "TimeLimit.truncated": is_truncated}
        return step.obs, step.reward.astype(np.float32), step.terminated | step.truncated, infos

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return None for each environment: SB3 reads attributes of wrappers, and there are none."""
        return [None] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raise AttributeError."""
        raise AttributeError(f"{attr_name} of a vector environment cannot be set")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Raise AttributeError."""
        raise AttributeError(f"a vector environment has no method {method_name} for each environment")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Return False for each environment."""
        return [False] * len(list(self._get_indices(indices)))
