"""Replay buffer of frame stacks for DQN of Stable-Baselines3, with optional priorities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from rldistill.data.frames import Padding, stack_frames


@dataclass(frozen=True)
class FrameReplayConfig:
    """Settings of `FrameReplayBuffer`, which SB3 takes as `replay_buffer_kwargs`.

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


class FrameReplayBuffer(BaseBuffer):
    """Replay buffer of n-step transitions that stores each frame once.

    Rewards are sum_k gamma^k r_{t+k} up to the end of the episode. Transitions over a truncation are not sampled,
    because the state to bootstrap from is not stored.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Box,
        action_space: spaces.Discrete,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.depth, *frame = observation_space.shape
        self.config = FrameReplayConfig(**settings)
        rows = self.buffer_size * n_envs
        self.frames: NDArray[Any] = np.zeros((rows, *frame), np.uint8)
        self.actions = np.zeros(rows, np.int64)
        self.rewards = np.zeros(rows, np.float32)
        self.terminated = np.zeros(rows, bool)
        self.truncated = np.zeros(rows, bool)
        self.age = np.zeros(rows, np.int64)
        self._age = np.zeros(n_envs, np.int64)
        self.priorities = np.zeros(rows, np.float32)
        self.sampled_rows = np.zeros(0, np.int64)
        self.weights = np.zeros(0, np.float32)

    def add(
        self,
        obs: NDArray[np.uint8],
        next_obs: NDArray[np.uint8],
        action: NDArray[np.int64],
        reward: NDArray[np.float32],
        done: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        """Add one step of all environments."""
        rows = slice(self.pos * self.n_envs, (self.pos + 1) * self.n_envs)
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        self.frames[rows] = obs[:, -1]
        self.actions[rows], self.rewards[rows] = action.reshape(-1), reward
        ends = done | (reward != 0) if self.config.terminal_on_reward else done
        self.terminated[rows], self.truncated[rows] = ends & ~truncated, truncated
        self.age[rows] = self._age
        self.priorities[rows] = self.priorities.max() or 1.0
        self._age = np.where(done, 0, self._age + 1)
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Return at most `batch_size` random transitions; their weights are in `weights`."""
        # Twice as many, since those over a truncation are dropped.
        rows = self._sample_by_priority(2 * batch_size) if self.config.alpha else self._sample_rows(2 * batch_size)
        whole = ~self.truncated[self._windows(rows)].any(1)
        self.sampled_rows = rows[whole][:batch_size]
        likelihood = (
            self.priorities[self.sampled_rows] if self.config.alpha else np.ones(len(self.sampled_rows), np.float32)
        )
        self.weights = (likelihood / likelihood.min()) ** -self.config.beta
        return self._get_samples(self.sampled_rows)

    def update_priorities(self, td_errors: NDArray[np.float32]) -> None:
        """Set the priorities of the last sample from its TD errors."""
        self.priorities[self.sampled_rows] = (np.abs(td_errors) + 1e-3) ** self.config.alpha

    def _sample_rows(self, count: int) -> NDArray[np.int64]:
        """Return random rows whose frames and n-step windows are in the buffer."""
        oldest, size = self._stored_steps()
        step = oldest + np.random.randint(self.depth, size - self.config.n_steps, count)
        return (step % self.buffer_size) * self.n_envs + np.random.randint(0, self.n_envs, count)

    def _sample_by_priority(self, count: int) -> NDArray[np.int64]:
        oldest, size = self._stored_steps()
        bounds = np.cumsum(self.priorities, dtype=np.float64)
        rows = np.searchsorted(bounds, np.random.rand(count) * bounds[-1], side="right")
        since = (rows // self.n_envs - oldest) % self.buffer_size
        usable = rows[(self.depth <= since) & (since < size - self.config.n_steps)]
        return usable if len(usable) > count // 2 else self._sample_rows(count)

    def _stored_steps(self) -> tuple[int, int]:
        """Return the index of the oldest step and the number of steps in the buffer."""
        return (self.pos, self.buffer_size) if self.full else (0, self.pos)

    def _windows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return (rows[:, None] + np.arange(self.config.n_steps) * self.n_envs) % len(self.frames)

    def _get_samples(self, batch_inds: NDArray[np.int64], env: Any = None) -> ReplayBufferSamples:
        window = self._windows(batch_inds)
        terminated = self.terminated[window]
        alive = np.cumprod(np.concatenate([np.ones((len(window), 1)), 1 - terminated[:, :-1]], 1), 1)
        returns = (self.rewards[window] * alive * self.config.gamma ** np.arange(self.config.n_steps)).sum(1)
        after = (batch_inds + self.config.n_steps * self.n_envs) % len(self.frames)
        return ReplayBufferSamples(
            observations=self._stacks(batch_inds),
            actions=torch.from_numpy(self.actions[batch_inds]).to(self.device)[:, None],
            next_observations=self._stacks(after),
            dones=torch.from_numpy(terminated.any(1).astype(np.float32)).to(self.device)[:, None],
            rewards=torch.from_numpy(returns.astype(np.float32)).to(self.device)[:, None],
            discounts=torch.full((len(batch_inds), 1), self.config.gamma**self.config.n_steps, device=self.device),
        )

    def _stacks(self, rows: NDArray[np.int64]) -> torch.Tensor:
        stacks = stack_frames(self.frames, rows, self.age[rows], self.depth, self.config.padding, self.n_envs)
        return torch.from_numpy(stacks).to(self.device, memory_format=torch.channels_last)
