"""What PPO learns from in one step of its optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rldistill.core.batch import Labels
from rldistill.core.heads import ActionHead
from rldistill.core.policy import PolicyOutput
from rldistill.rl.rollout import Rollout


@dataclass(frozen=True)
class Minibatch:
    """Some steps of an update, `[B, ...]`, or for a student that remembers the whole of some slots, `[T, B, ...]`.

    Attributes:
        old: the log-probability of each action when it was drawn.
        advantage, returns: of each action, and what the critic should have said.
        state: what the student remembered at first.
        obs, raw_action, reward, terminated, starts, weight, labels: as in `Rollout`.
    """

    obs: Tensor
    raw_action: Tensor
    old: Tensor
    advantage: Tensor
    returns: Tensor
    reward: Tensor
    terminated: Tensor
    starts: Tensor
    weight: Tensor
    labels: Tensor | None = None
    state: Tensor | None = None

    def normalised_advantage(self) -> Tensor:
        """With mean 0 and deviation 1 over the steps that count."""
        total = self.weight.sum().clamp_min(1)
        if self.advantage.numel() == 1:
            return self.advantage
        centred = self.advantage - torch.dot(self.weight.flatten(), self.advantage.flatten()) / total
        squares = torch.dot(self.weight.flatten(), centred.flatten() ** 2)
        return centred / ((squares / (total - 1).clamp_min(1)).sqrt() + 1e-8)

    def labelled(self, head: ActionHead) -> Labels:
        """As the distillation losses take it."""
        assert self.labels is not None
        teacher = PolicyOutput(head, self.labels)
        return Labels(teacher, teacher, self.raw_action, self.reward, self.returns, self.terminated)


def minibatches(
    experience: Rollout,
    old: Tensor,
    advantage: Tensor,
    returns: Tensor,
    batch_size: int,
    remembers: bool,
    rng: np.random.Generator,
) -> Iterator[Minibatch]:
    """All steps in a new order, about `batch_size` at a time; whole slots where the student remembers."""
    columns = {"old": old, "advantage": advantage, "returns": returns}
    for name in ("obs", "raw_action", "reward", "terminated", "starts", "weight"):
        columns[name] = getattr(experience, name)
    if experience.labels is not None:
        columns["labels"] = experience.labels
    steps, slots = experience.reward.shape
    if not remembers:
        columns = {name: column.flatten(0, 1) for name, column in columns.items()}
    # Brought into their order at once: a gathering for each minibatch costs as much as a small network.
    order = torch.from_numpy(rng.permutation(slots if remembers else steps * slots))
    size = max(1, batch_size // steps) if remembers else batch_size
    along = 1 if remembers else 0
    parts = {name: torch.split(column.index_select(along, order), size, along) for name, column in columns.items()}
    if remembers and experience.state is not None:
        parts["state"] = torch.split(experience.state.index_select(0, order), size)
    for some in zip(*parts.values(), strict=True):
        yield Minibatch(**dict(zip(parts, some, strict=True)))
