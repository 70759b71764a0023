"""Small discrete problem of the tests of adversarial rewards: three states and two actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.rollout import Rollout
from rldistill.students import Linear

HEAD = CategoricalHead((2,))
SPEC = PolicySpec((), "int64", HEAD, nvec=(3,))
"""Three states and two actions."""


def recorded(states: Sequence[int], actions: Sequence[int], terminated: Sequence[bool]) -> Dataset:
    """Return recorded steps in episodes that end where a step terminates; the next state is the same one."""
    count = len(states)
    columns = {
        "action": np.array(actions, np.int64),
        "terminated": np.array(terminated),
        "truncated": np.zeros(count, bool),
        "episode": np.cumsum([False, *terminated[:-1]]).astype(np.int32),
        "step": np.arange(count),
    }
    rows = np.arange(count)
    return Dataset(SPEC, columns, np.array(states), rows, rows, np.zeros(count, bool), count)


def policy_of_logits(logits: Sequence[float] = (0.0, 0.0)) -> NetworkPolicy:
    """Return a policy with the same logits in all states."""
    policy = Linear().build(SPEC)
    with torch.no_grad():
        policy.output.weight.zero_()  # type: ignore[operator]
        policy.output.bias.copy_(torch.tensor(logits))  # type: ignore[operator]
    return policy


def make_rollout(states: Sequence[int], actions: Sequence[int], terminated: Sequence[bool], **columns: Any) -> Rollout:
    """Return steps of one environment by a policy with equal probabilities."""
    count = len(states)
    given = {
        "obs": torch.tensor(states)[:, None],
        "raw_action": torch.tensor(actions)[:, None],
        "action_params": torch.zeros(count, 1, 2),
        "reward": torch.zeros(count, 1),
        "terminated": torch.tensor(terminated)[:, None],
        "truncated": torch.zeros(count, 1, dtype=torch.bool),
        "starts": torch.tensor([True, *terminated[:-1]])[:, None],
        "next_obs": torch.tensor([0]),
        "last_obs": {},
    }
    return Rollout(**{**given, **columns})


class Known(nn.Module):
    """Function of the state and the action in place of a `Potential`."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def encode(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return obs, action

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        return self.function(*inputs)
