"""Observations in the replay of a learner of Q values, and transitions of a teacher's dataset."""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.policy import PolicyOutput
from rldistill.data.dataset import Dataset
from rldistill.data.replay import TransitionBatch
from rldistill.distillation.prepare import frozen_features
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import DQNConfig


class ReplayObsEncoder:
    """Form of observations in replay: themselves, or the few outputs of the student's frozen layers for an image.

    Attributes:
        uses_features: True if these outputs are stored, since they are much smaller than a frame and fit into memory.
        spec: spec of stored observations.
    """

    def __init__(self, policy: NetworkPolicy, dataset: Dataset | None, device: torch.device) -> None:
        self.policy, self.device, self.spec = policy, device, policy.spec
        shape, size = self.spec.obs_shape, policy.num_features
        frame = math.prod(shape[1:] if self.spec.frames else shape) * np.dtype(self.spec.obs_dtype).itemsize
        is_smaller = len(shape) == 3 and policy.num_frozen_layers > 0 and 4 * size < frame
        # Room for observations and the next ones.
        self.uses_features = is_smaller and dataset is not None and dataset.has_room_for(2 * size)
        if self.uses_features:
            self.spec = dataclasses.replace(self.spec, obs_shape=(size,), obs_dtype="float32", frames=None)

    def encode(self, obs: Tensor) -> NDArray[Any]:
        """Return the stored form of observations `[B, *obs_shape]`."""
        if not self.uses_features:
            return obs.numpy()
        with torch.no_grad():
            return self.policy.frozen_features(obs.to(self.device)).cpu().numpy()

    def q_values(self, network: NetworkPolicy, stored: Tensor) -> PolicyOutput:
        """Return the output of a network with the same frozen layers for stored observations."""
        if self.uses_features:
            return network.from_frozen_features(stored)
        output: PolicyOutput = network(stored)[0]
        return output


class OfflineTransitions:
    """One-step transitions of a dataset, without those that are held out, with observations as in replay."""

    def __init__(self, dataset: Dataset, encoder: ReplayObsEncoder, config: DQNConfig, clips_rewards: bool) -> None:
        self.config, self.clips_rewards = config, clips_rewards
        self.rows = np.flatnonzero(~dataset.heldout)
        self.dataset, self._next_obs = dataset, dataset.next_observations
        if encoder.uses_features:
            now, following = (
                frozen_features(encoder.policy, read, len(dataset), encoder.device)
                for read in (dataset.observations, dataset.next_observations)
            )
            self.dataset, self._next_obs = dataset.seen_as(now), lambda rows: torch.from_numpy(following[rows])

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, count: int, rng: np.random.Generator) -> TransitionBatch:
        """Return `count` random transitions."""
        rows = self.rows[rng.integers(0, len(self.rows), count)]
        batch = self.dataset.batch(rows)
        assert isinstance(batch.obs, Tensor)
        ends = batch.terminated | (batch.reward != 0) & self.config.terminal_on_reward
        return TransitionBatch(
            batch.obs,
            batch.action,
            batch.reward.sign() if self.clips_rewards else batch.reward,
            self._next_obs(rows),
            self.config.gamma * ~ends,
            batch.teacher.params,
        )
