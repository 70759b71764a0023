"""Replay buffer of transitions with every frame stored once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Labels, PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.frames import stack_frames


@dataclass(frozen=True)
class TransitionBatch:
    """A batch of n-step transitions.

    Attributes:
        obs: observations, `[B, *obs_shape]`.
        action: actions, `[B]`.
        reward: sum_k gamma^k r_{t+k} over the n steps, up to the end of the episode.
        next_obs: observations after the n steps.
        discount: gamma^n; 0 if the episode terminated within the n steps.
        labels: parameters of the teacher for `obs`; None without a teacher.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    discount: Tensor
    labels: Tensor | None

    def to_labels(self, head: ActionHead) -> Labels:
        """Return the labels of the distillation losses; `head` is the teacher's."""
        assert self.labels is not None
        teacher = PolicyOutput(head, self.labels)
        return Labels(teacher, teacher, self.action, self.reward, self.reward, self.discount == 0)

    def concat(self, other: TransitionBatch) -> TransitionBatch:
        """Return both as one batch, with labels if both have them."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        columns: list[Any] = [None if one is None or two is None else torch.cat([one, two]) for one, two in pairs]
        return TransitionBatch(*columns)


class ReplayBuffer:
    """Ring of the latest `capacity` transitions of `num_envs` environments that step together.

    Row `t % num_steps * num_envs + slot` is step t of an environment.

    Attributes:
        columns: one array for each field of a transition.
        last_obs: last observation of each truncated episode by its row, since the next row shows another episode.
        num_added: number of all steps added so far.
        min_steps: steps with at least one transition of n steps and whole stacks of frames.
    """

    def __init__(
        self, spec: PolicySpec, capacity: int, num_envs: int, n_steps: int = 1, gamma: float = 0.99, num_labels: int = 0
    ) -> None:
        self.frames, self.num_envs, self.num_steps = spec.frames, num_envs, max(capacity // num_envs, 1)
        self.n_steps, self.gamma = n_steps, gamma
        self.min_steps = n_steps + (self.frames.stack if self.frames else 1)
        rows = self.num_steps * num_envs
        if self.num_steps < self.min_steps:
            problem = f"{rows} transitions of {num_envs} environments hold no return of {n_steps} steps"
            raise ConfigError(f"dqn.buffer_size: {problem}. Set at least {self.min_steps * num_envs}.")
        shape = spec.obs_shape[1:] if self.frames else spec.obs_shape
        self.columns: dict[str, NDArray[Any]] = {
            "obs": np.zeros((rows, *shape), spec.obs_dtype),
            "action": np.zeros(rows, np.int64),
            "reward": np.zeros(rows, np.float32),
            "terminated": np.zeros(rows, bool),
            "truncated": np.zeros(rows, bool),
            "age": np.zeros(rows, np.int64),
        }
        if num_labels:
            self.columns["labels"] = np.zeros((rows, num_labels), np.float32)
        self.last_obs: dict[int, NDArray[Any]] = {}
        self.num_added = 0

    def __len__(self) -> int:
        return min(self.num_added, self.num_steps) * self.num_envs

    def add(self, obs: NDArray[Any], last_obs: dict[int, NDArray[Any]], **columns: NDArray[Any]) -> None:
        """Add one step of all environments; `last_obs` by environment, for episodes that were truncated."""
        first = self._first_row(self.num_added)
        rows = slice(first, first + self.num_envs)
        self.columns["obs"][rows] = obs[:, -1] if self.frames else obs
        for name, column in columns.items():
            self.columns[name][rows] = column
        for row in range(first, first + self.num_envs):
            self.last_obs.pop(row, None)
        self.last_obs |= {first + slot: last.copy() for slot, last in last_obs.items()}
        self.num_added += 1

    def truncate(self) -> None:
        """End all open episodes, because the next rows will belong to other ones.

        The result of the newest step is unknown, so that step is removed; its observation is the last of its episode.
        """
        newest = self._first_row(self.num_added - 1) + np.arange(self.num_envs)
        before = self._first_row(self.num_added - 2) + np.arange(self.num_envs)
        obs = self.observations(newest)
        for slot in range(self.num_envs if self.num_added > 1 else 0):
            row = int(before[slot])
            if not self.columns["terminated"][row] and not self.columns["truncated"][row]:
                self.columns["truncated"][row], self.last_obs[row] = True, obs[slot].copy()
        self.num_added = max(self.num_added - 1, 0)

    def sample(self, count: int, rng: np.random.Generator) -> TransitionBatch:
        """Return `count` random transitions; all their n steps and stacked frames are in the ring."""
        return self.transitions(self.random_rows(count, rng))

    @property
    def first_step(self) -> int:
        """The first step with a whole stack of frames."""
        return self.num_added - min(self.num_added, self.num_steps) + self.min_steps - self.n_steps - 1

    def random_rows(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return rows of random transitions."""
        step = rng.integers(self.first_step, self.num_added - self.n_steps, count)
        return step % self.num_steps * self.num_envs + rng.integers(0, self.num_envs, count)

    def transitions(self, row: NDArray[np.int64]) -> TransitionBatch:
        """Return the transitions that begin in these rows."""
        count, n_steps, gamma = len(row), self.n_steps, self.gamma
        num_rows = len(self.columns["action"])
        window = (row[:, None] + np.arange(n_steps) * self.num_envs) % num_rows
        ended = self.columns["terminated"][window] | self.columns["truncated"][window]
        within = np.cumprod(np.concatenate([np.ones((count, 1)), ~ended[:, :-1]], 1), 1)
        reward = (self.columns["reward"][window] * within * gamma ** np.arange(n_steps)).sum(1)
        terminated = (self.columns["terminated"][window] * within).any(1)
        next_obs = self.observations((row + n_steps * self.num_envs) % num_rows)
        for index in np.flatnonzero((self.columns["truncated"][window] * within).any(1)):
            next_obs[index] = self.last_obs[int(window[index, int(np.flatnonzero(ended[index])[0])])]
        return TransitionBatch(
            torch.from_numpy(self.observations(row)),
            torch.from_numpy(self.columns["action"][row]),
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(next_obs),
            torch.from_numpy(np.where(terminated, 0.0, gamma ** within.sum(1)).astype(np.float32)),
            torch.from_numpy(self.columns["labels"][row]) if "labels" in self.columns else None,
        )

    def observations(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the observations of some rows, frames stacked."""
        obs: NDArray[Any] = self.columns["obs"]
        if self.frames is None:
            return np.asarray(obs[rows])  # a copy, since the rows are an array
        return stack_frames(obs, rows, self.columns["age"][rows], self.frames.stack, self.frames.padding, self.num_envs)

    def _first_row(self, step: int) -> int:
        return step % self.num_steps * self.num_envs

    def state_dict(self) -> dict[str, Any]:
        """Return the contents by name."""
        return {
            "columns": {name: torch.from_numpy(column[: len(self)]) for name, column in self.columns.items()},
            "last_obs": {row: torch.from_numpy(np.ascontiguousarray(obs)) for row, obs in self.last_obs.items()},
            "num_added": self.num_added,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`; raise ValueError if it is of a ring of another size."""
        self.num_added = state["num_added"]
        for name, column in self.columns.items():
            column[: len(self)] = state["columns"][name].numpy()
        self.last_obs = {int(row): obs.numpy() for row, obs in state.get("last_obs", {}).items()}
