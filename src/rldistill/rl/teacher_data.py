"""What a learner of Q values sees of the teacher's data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.data.dataset import Dataset
from rldistill.distillation.gradient import fixed_features
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import DQNConfig
from rldistill.rl.replay import TransitionBatch


@dataclass(frozen=True)
class TeacherData:
    """The transitions of a dataset that are not held out, each for itself.

    Attributes:
        dataset: what the student sees, or the numbers that its fixed layers make of that.
        following: the same of what each transition led to.
        rows: those to learn from.
        config: how the student learns.
        clipped: whether rewards count by their signs.
    """

    dataset: Dataset
    following: Callable[[NDArray[np.int64]], Tensor]
    rows: NDArray[np.int64]
    config: DQNConfig
    clipped: bool

    @classmethod
    def of(cls, dataset: Dataset, fixed: NetworkPolicy | None, config: DQNConfig, clipped: bool) -> TeacherData:
        """Seen as it is, or through the fixed layers of a student."""
        rows = np.flatnonzero(~dataset.heldout)
        if fixed is None:
            return cls(dataset, dataset.next_observations, rows, config, clipped)
        looks, cpu = (dataset.observations, dataset.next_observations), torch.device("cpu")
        now, later = (fixed_features(fixed, look, len(dataset), cpu) for look in looks)
        return cls(dataset.seen_as(now), lambda asked: torch.from_numpy(later[asked]), rows, config, clipped)

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, count: int, rng: np.random.Generator) -> TransitionBatch:
        """`count` transitions of one step."""
        raw_action = self.rows[rng.integers(0, len(self.rows), count)]
        batch = self.dataset.batch(raw_action)
        assert isinstance(batch.obs, Tensor)
        return TransitionBatch(
            batch.obs,
            batch.action,
            batch.reward.sign() if self.clipped else batch.reward,
            self.following(raw_action),
            self.config.gamma * ~(batch.terminated | (batch.reward != 0) & self.config.terminal_on_reward),
            batch.teacher.params,
        )
