"""Advantages of a rollout, and the minibatches in which PPO learns from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rldistill.core.batch import Labels
from rldistill.core.heads import ActionHead
from rldistill.core.policy import PolicyOutput
from rldistill.rl.rollout import Rollout


def advantages(rollout: Rollout, value: Tensor, next_value: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Return generalized advantage estimates `[T, N]` (Schulman 2016, arXiv 1506.02438).

    A_t = delta_t + gamma lambda A_{t+1} within an episode, delta_t = r_t + gamma V(s_{t+1}) - V(s_t), V(s_{t+1}) = 0 if
    the episode terminated.
    """
    delta = rollout.reward + gamma * next_value * ~rollout.terminated - value
    ended = rollout.terminated | rollout.truncated
    result = torch.zeros_like(delta)
    following = torch.zeros_like(delta[0])
    for step in range(len(delta) - 1, -1, -1):
        following = delta[step] + gamma * gae_lambda * following * ~ended[step]
        result[step] = following
    return result


@dataclass(frozen=True)
class Minibatch:
    """Steps of a rollout, `[B, ...]`; for a recurrent student whole sequences, `[T, B, ...]`.

    Attributes:
        old_log_prob: log-probability of each action when it was drawn.
        advantage: advantage of each action.
        returns: target of the critic.
        state: state of a recurrent student before the first step.
        obs, raw_action, reward, terminated, starts, weight, labels: as in `Rollout`.
    """

    obs: Tensor
    raw_action: Tensor
    old_log_prob: Tensor
    advantage: Tensor
    returns: Tensor
    reward: Tensor
    terminated: Tensor
    starts: Tensor
    weight: Tensor
    labels: Tensor | None = None
    state: Tensor | None = None

    @classmethod
    def of_rollout(cls, rollout: Rollout, old_log_prob: Tensor, advantage: Tensor, returns: Tensor) -> Minibatch:
        """Return all steps of a rollout, `[T, N, ...]`."""
        own = {"old_log_prob": old_log_prob, "advantage": advantage, "returns": returns}
        names = [field.name for field in dataclasses.fields(cls) if field.name not in own]
        return cls(**own, **{name: getattr(rollout, name) for name in names})

    def split(self, batch_size: int, recurrent: bool, rng: np.random.Generator) -> Iterator[Minibatch]:
        """Yield all steps in a random order, about `batch_size` at a time; whole sequences if recurrent."""
        num_steps, num_envs = self.reward.shape
        columns = {name: column for name, column in vars(self).items() if column is not None and name != "state"}
        if not recurrent:
            columns = {name: column.flatten(0, 1) for name, column in columns.items()}
        permutation = rng.permutation(num_envs if recurrent else num_steps * num_envs)
        order = torch.from_numpy(permutation).to(self.reward.device)
        size = max(1, batch_size // num_steps) if recurrent else batch_size
        # One gather for all minibatches: one for each of them costs as much as a small network.
        dim = 1 if recurrent else 0
        parts = {name: torch.split(column.index_select(dim, order), size, dim) for name, column in columns.items()}
        if recurrent and self.state is not None:
            parts["state"] = torch.split(self.state.index_select(0, order), size)
        for values in zip(*parts.values(), strict=True):
            yield Minibatch(**dict(zip(parts, values, strict=True)))

    @cached_property
    def _total_weight(self) -> Tensor:
        return self.weight.sum().clamp_min(1)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over the steps with a weight; 0 if there are none."""
        return torch.dot(self.weight.flatten(), values.flatten()) / self._total_weight

    def normalized_advantage(self) -> Tensor:
        """Return the advantage with mean 0 and standard deviation 1 over the steps with a weight."""
        if self.advantage.numel() == 1:
            return self.advantage
        centered = self.advantage - self.mean(self.advantage)
        variance = torch.dot(self.weight.flatten(), centered.flatten() ** 2) / (self._total_weight - 1).clamp_min(1)
        return centered / (variance.sqrt() + 1e-8)

    def to_labels(self, head: ActionHead) -> Labels:
        """Return the labels of the distillation losses; `head` is the teacher's."""
        assert self.labels is not None
        teacher = PolicyOutput(head, self.labels)
        return Labels(teacher, teacher, self.raw_action, self.reward, self.returns, self.terminated)
