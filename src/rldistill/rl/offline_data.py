"""The teacher's dataset as transitions for a learner of Q values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.distillation.prepare import frozen_features
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import DQNConfig
from rldistill.rl.replay import TransitionBatch


@dataclass(frozen=True)
class ReplayObsEncoder:
    """Form of observations in replay: themselves, or the few outputs of the student's frozen layers for an image.

    Attributes:
        policy: network with these layers.
        uses_features: True if the outputs of the frozen layers are stored.
        device: device of the network.
    """

    policy: NetworkPolicy
    uses_features: bool
    device: torch.device

    @classmethod
    def choose(cls, policy: NetworkPolicy, dataset: Dataset | None, device: torch.device) -> ReplayObsEncoder:
        """Return an encoder that stores features if they are much smaller than a frame and fit into memory."""
        spec = policy.spec
        frame = math.prod(spec.obs_shape[1:] if spec.frames else spec.obs_shape) * np.dtype(spec.obs_dtype).itemsize
        smaller = len(spec.obs_shape) == 3 and policy.num_frozen_layers > 0 and 4 * policy.num_features < frame
        fits = dataset is not None and dataset.has_room_for(2 * policy.num_features)  # observations and the next ones
        return cls(policy, smaller and fits, device)

    @property
    def spec(self) -> PolicySpec:
        """The spec of stored observations."""
        if not self.uses_features:
            return self.policy.spec
        shape = (self.policy.num_features,)
        return dataclasses.replace(self.policy.spec, obs_shape=shape, obs_dtype="float32", frames=None)

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


@dataclass(frozen=True)
class OfflineTransitions:
    """One-step transitions of a dataset, without those that are held out.

    Attributes:
        dataset: the dataset, with stored observations in place of its own.
        next_obs: stored observations after the transitions of some rows.
        rows: rows of the dataset to sample from.
        config: discount, and the end of returns.
        clips_rewards: True if rewards are replaced by their signs, as in Atari's environments.
    """

    dataset: Dataset
    next_obs: Callable[[NDArray[np.int64]], Tensor]
    rows: NDArray[np.int64]
    config: DQNConfig
    clips_rewards: bool

    @classmethod
    def of_dataset(
        cls, dataset: Dataset, encoder: ReplayObsEncoder, config: DQNConfig, clips_rewards: bool
    ) -> OfflineTransitions:
        """Return the transitions of a dataset, with observations in the form of `encoder`."""
        rows = np.flatnonzero(~dataset.heldout)
        if not encoder.uses_features:
            return cls(dataset, dataset.next_observations, rows, config, clips_rewards)
        now, following = (
            frozen_features(encoder.policy, read, len(dataset), encoder.device)
            for read in (dataset.observations, dataset.next_observations)
        )
        return cls(dataset.seen_as(now), lambda rows: torch.from_numpy(following[rows]), rows, config, clips_rewards)

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
            self.next_obs(rows),
            self.config.gamma * ~ends,
            batch.teacher.params,
        )
