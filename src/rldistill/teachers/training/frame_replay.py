"""Replay buffer of `DoubleDQN`, with optional priorities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rldistill.core.heads import QValuesHead
from rldistill.core.spec import FramePipeline, PolicySpec
from rldistill.data.frames import Padding
from rldistill.data.replay import ReplayBuffer


@dataclass(frozen=True)
class ReplaySettings:
    """Settings of `PrioritizedReplay`, which SB3 takes as `replay_buffer_kwargs`.

    With `alpha` > 0, a transition is sampled with a probability proportional to (|last TD error| + 0.001)^alpha, a new
    one with the largest priority so far, and weighted by (probability * number of transitions)^-beta, divided by the
    largest weight in the batch (Schaul 2016, arXiv 1511.05952).

    With `terminal_on_reward`, returns end at each reward that is not 0, so that in a game of many points the values are
    those of the current point, in [-1, 1].
    """

    n_steps: int = 1
    gamma: float = 0.99
    padding: Padding = "zero"
    alpha: float = 0.0
    beta: float = 0.5
    terminal_on_reward: bool = False


class PrioritizedReplay(ReplayBuffer):
    """Replay buffer that SB3 creates and fills."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Box,
        action_space: spaces.Discrete,
        n_envs: int = 1,
        device: Any = None,
        optimize_memory_usage: bool = False,
        **settings: Any,
    ) -> None:
        self.settings = ReplaySettings(**settings)
        shape, dtype = observation_space.shape, str(observation_space.dtype)
        spec = PolicySpec(shape, dtype, QValuesHead((int(action_space.n),)))
        if len(shape) == 3 and shape[0] <= 8 and dtype == "uint8":
            frames = FramePipeline(shape[1], shape[2], shape[0], padding=self.settings.padding)
            spec = replace(spec, frames=frames)
        super().__init__(spec, buffer_size, n_envs, self.settings.n_steps, self.settings.gamma)
        self.priorities = np.zeros(self.num_steps * n_envs, np.float32)
        self._age = np.zeros(n_envs, np.int64)
        self._rng = np.random.default_rng(np.random.randint(1 << 31))  # of the seed of SB3

    def add(  # type: ignore[override]
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[np.int64],
        reward: NDArray[np.float32],
        done: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        """Add one step of all environments."""
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        ends = done | (reward != 0) if self.settings.terminal_on_reward else done
        first = self.num_added % self.num_steps * self.num_envs
        self.priorities[first : first + self.num_envs] = self.priorities.max() or 1.0
        super().add(
            obs,
            {slot: next_obs[slot] for slot in np.flatnonzero(truncated).tolist()},
            action=action.reshape(-1),
            reward=reward,
            terminated=ends & ~truncated,
            truncated=truncated,
            age=self._age,
        )
        self._age = np.where(done, 0, self._age + 1)

    def sample_rows(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the rows of `count` random transitions, and their weights."""
        if not self.settings.alpha:
            return self.random_rows(count, self._rng), np.ones(count, np.float32)
        bounds = np.cumsum(self.priorities, dtype=np.float64)
        # Twice as many, since some begin before the first whole stack, or have not ended.
        rows = np.searchsorted(bounds, self._rng.random(2 * count) * bounds[-1], side="right")
        since = (rows // self.num_envs - self.first_step) % self.num_steps
        rows = rows[since < self.num_added - self.n_steps - self.first_step][:count]
        rows = rows if len(rows) == count else self.random_rows(count, self._rng)
        likelihood = self.priorities[rows]
        return rows, (likelihood / likelihood.min()) ** -self.settings.beta

    def update_priorities(self, rows: NDArray[np.int64], td_errors: NDArray[np.float32]) -> None:
        """Set the priorities of transitions from their TD errors."""
        self.priorities[rows] = (np.abs(td_errors) + 1e-3) ** self.settings.alpha
