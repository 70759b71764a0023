"""Advantages of a rollout, and the minibatches in which PPO learns from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rldistill.core.batch import Labels
from rldistill.core.heads import ActionHead
from rldistill.core.policy import PolicyOutput
from rldistill.rl.rollout import Rollout, Steps


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


@dataclass(frozen=True, kw_only=True)
class Minibatch(Steps):
    """Steps of a rollout, `[B, ...]`; for a recurrent student whole sequences, `[T, B, ...]`.

    Attributes:
        old_log_prob: log-probability of each action when it was drawn.
        advantage: advantage of each action.
        returns: target of the critic.
    """

    old_log_prob: Tensor
    advantage: Tensor
    returns: Tensor

    @classmethod
    def of_rollout(cls, rollout: Rollout, **own: Tensor) -> Minibatch:
        """Return all steps of a rollout, `[T, N, ...]`, with the columns of a minibatch alone."""
        return cls(**{field.name: getattr(rollout, field.name) for field in dataclasses.fields(Steps)}, **own)

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

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over the steps of the student; 0 if there are none."""
        if self.weight is None:
            return values.mean()
        return torch.dot(self.weight.flatten(), values.flatten()) / self.weight.sum().clamp_min(1)

    def normalized_advantage(self) -> Tensor:
        """Return the advantage with mean 0 and standard deviation 1 over the steps of the student."""
        advantage = self.advantage
        if advantage.numel() == 1:
            return advantage
        if self.weight is None:
            std, mean = torch.std_mean(advantage)
            return (advantage - mean) / (std + 1e-8)
        centered, total = advantage - self.mean(advantage), self.weight.sum().clamp_min(1)
        return centered / ((self.mean(centered**2) * total / (total - 1).clamp_min(1)).sqrt() + 1e-8)

    def to_labels(self, head: ActionHead) -> Labels:
        """Return the labels of the distillation losses; `head` is the teacher's."""
        assert self.labels is not None
        teacher = PolicyOutput(head, self.labels)
        return Labels(teacher, teacher, self.raw_action, self.reward, self.returns, self.terminated)
