"""A last layer that says a state's value and each action's advantage (Wang 2016, arXiv 1511.06581)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dueling(nn.Module):
    """Q(s, a) = V(s) + A(s, a) - mean_a A(s, a), both linear in the last hidden layer."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.value, self.advantage = nn.Linear(width, 1), nn.Linear(width, actions)

    def forward(self, hidden: Tensor) -> Tensor:
        advantage: Tensor = self.advantage(hidden)
        values: Tensor = self.value(hidden) + advantage - advantage.mean(-1, keepdim=True)
        return values

    def joined(self) -> nn.Linear:
        """The same function in one layer, since all of it is linear."""
        joined = nn.Linear(self.advantage.in_features, self.advantage.out_features)
        with torch.no_grad():
            for name in ("weight", "bias"):
                advantage, value = getattr(self.advantage, name), getattr(self.value, name)
                getattr(joined, name).copy_(value + advantage - advantage.mean(0, keepdim=True))
        return joined
