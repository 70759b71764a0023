"""What a learner of Q values remembers of its steps: a ring of transitions, single frames stored once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.spec import FramePipeline, PolicySpec
from rldistill.data.frames import stack_frames


@dataclass(frozen=True)
class TransitionBatch:
    """A batch of n-step transitions.

    Attributes:
        obs, action: what was seen and done, `[B, ...]`.
        reward: sum_k gamma^k r_{t+k} over the steps of the window, up to the end of the episode.
        next_obs: what the window led to.
        discount: gamma^n for the n steps that there were; 0 where the episode terminated within them.
        labels: the teacher's parameters for `obs`, if they were kept.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    discount: Tensor
    labels: Tensor | None

    def concat(self, other: TransitionBatch) -> TransitionBatch:
        """Both as one batch, with labels if both have them."""
        labels = None
        if self.labels is not None and other.labels is not None:
            labels = torch.cat([self.labels, other.labels])
        return TransitionBatch(
            torch.cat([self.obs, other.obs]),
            torch.cat([self.action, other.action]),
            torch.cat([self.reward, other.reward]),
            torch.cat([self.next_obs, other.next_obs]),
            torch.cat([self.discount, other.discount]),
            labels,
        )


class ReplayBuffer:
    """The last `capacity` transitions of `num_envs` environments that step together."""

    def __init__(self, spec: PolicySpec, capacity: int, num_envs: int, labels: int = 0) -> None:
        self.frames: FramePipeline | None = spec.frames
        self.num_envs, self.steps = num_envs, max(capacity // num_envs, 1)
        rows = self.steps * num_envs
        shape = spec.obs_shape[1:] if self.frames else spec.obs_shape
        self.columns: dict[str, NDArray[Any]] = {
            "obs": np.zeros((rows, *shape), spec.obs_dtype),
            "action": np.zeros(rows, np.int64),
            "reward": np.zeros(rows, np.float32),
            "terminated": np.zeros(rows, bool),
            "truncated": np.zeros(rows, bool),
            "age": np.zeros(rows, np.int64),
        }
        if labels:
            self.columns["labels"] = np.zeros((rows, labels), np.float32)
        # Of episodes that were cut: what their last step led to, which the next row does not show.
        self.last: dict[int, NDArray[Any]] = {}
        self.episode_actions = 0

    def __len__(self) -> int:
        return min(self.episode_actions, self.steps) * self.num_envs

    def add(self, obs: NDArray[Any], last_obs: dict[int, NDArray[Any]], **columns: NDArray[Any]) -> None:
        """A step of all slots; `last_obs` by slot, of the episodes that were cut by a time limit."""
        first = self.episode_actions % self.steps * self.num_envs
        rows = slice(first, first + self.num_envs)
        self.columns["obs"][rows] = obs[:, -1] if self.frames else obs
        for name, column in columns.items():
            self.columns[name][rows] = column
        for row in range(first, first + self.num_envs):
            self.last.pop(row, None)
        self.last |= {first + slot: seen.copy() for slot, seen in last_obs.items()}
        self.episode_actions += 1

    def cut(self) -> None:
        """End all open episodes where they stand, as where what comes next is of others.

        What the newest steps led to is not known, so these are forgotten, and what they showed is the end of what
        came before.
        """
        newest = (self.episode_actions - 1) % self.steps * self.num_envs + np.arange(self.num_envs)
        before = (self.episode_actions - 2) % self.steps * self.num_envs + np.arange(self.num_envs)
        seen = self._seen(newest)
        for slot in range(self.num_envs if self.episode_actions > 1 else 0):
            row = int(before[slot])
            if not self.columns["terminated"][row] and not self.columns["truncated"][row]:
                self.columns["truncated"][row], self.last[row] = True, seen[slot].copy()
        self.episode_actions = max(self.episode_actions - 1, 0)

    def sample(self, count: int, n_steps: int, gamma: float, rng: np.random.Generator) -> TransitionBatch:
        """`count` transitions whose window, and whose stack of frames, lie wholly in the ring."""
        depth = self.frames.stack if self.frames else 1
        held = min(self.episode_actions, self.steps)
        oldest = self.episode_actions - held
        step = rng.integers(oldest + depth - 1, self.episode_actions - n_steps, count)
        row = step % self.steps * self.num_envs + rng.integers(0, self.num_envs, count)
        window = (row[:, None] + np.arange(n_steps) * self.num_envs) % len(self.columns["action"])
        ended = self.columns["terminated"][window] | self.columns["truncated"][window]
        within = np.cumprod(np.concatenate([np.ones((count, 1)), ~ended[:, :-1]], 1), 1)
        reward = (self.columns["reward"][window] * within * gamma ** np.arange(n_steps)).sum(1)
        terminated = (self.columns["terminated"][window] * within).any(1)
        after = (row + n_steps * self.num_envs) % len(self.columns["action"])
        next_obs = self._seen(after)
        for number in np.flatnonzero((self.columns["truncated"][window] * within).any(1)):
            cut = int(window[number, int(np.flatnonzero(ended[number])[0])])
            next_obs[number] = self.last[cut]
        discount = np.where(terminated, 0.0, gamma ** within.sum(1))
        labels = torch.from_numpy(self.columns["labels"][row]) if "labels" in self.columns else None
        return TransitionBatch(
            torch.from_numpy(self._seen(row)),
            torch.from_numpy(self.columns["action"][row]),
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(next_obs),
            torch.from_numpy(discount.astype(np.float32)),
            labels,
        )

    def ready(self, n_steps: int) -> bool:
        """Whether there is a whole window to draw."""
        return self.episode_actions >= self._window(n_steps)

    def require_room(self, n_steps: int) -> None:
        """Raise ConfigError if it can never hold a whole window."""
        least = self._window(n_steps) * self.num_envs
        if self.steps * self.num_envs < least:
            raise ConfigError(
                f"dqn.buffer_size: {self.steps * self.num_envs} transitions of {self.num_envs} environments hold no "
                f"return of {n_steps} steps; expected at least {least}"
            )

    def _window(self, n_steps: int) -> int:
        return n_steps + (self.frames.stack if self.frames else 1)

    def _seen(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if self.frames is None:
            episode_actions: NDArray[Any] = self.columns["obs"][rows]
            return episode_actions
        return stack_frames(
            self.columns["obs"], rows, self.columns["age"][rows], self.frames.stack, self.frames.padding, self.num_envs
        )

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds."""
        whole = {f"column.{name}": torch.from_numpy(column[: len(self)]) for name, column in self.columns.items()}
        whole |= {f"last.{row}": torch.from_numpy(np.ascontiguousarray(seen)) for row, seen in self.last.items()}
        return whole | {"taken": torch.tensor(self.episode_actions)}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Hold what `tensors` were taken of; raises ValueError if that was a ring of another size."""
        self.episode_actions = int(tensors["taken"])
        for name, column in self.columns.items():
            column[: len(self)] = tensors[f"column.{name}"].numpy()
        rows = {name: value for name, value in tensors.items() if name.startswith("last.")}
        self.last = {int(name.removeprefix("last.")): value.numpy() for name, value in rows.items()}
