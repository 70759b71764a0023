"""Features of Meta-World's tasks: the standardized state, and the differences between its positions, magnified.

The scripted experts move by a multiple of such differences, and change their actions at differences of a few
centimeters, which standardization makes small.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rldistill import Features, PolicySpec
from rldistill.students.features import Standardizer

HAND, OBJECT, GOAL = slice(0, 3), slice(4, 7), slice(-3, None)
GAIN, LIMIT = 25.0, 3.0
"""Differences of 4 cm are 1, and those of more than 12 cm are alike."""


class StateAndDifferences(Standardizer):
    """Layer from the state to the standardized state and nine differences."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        hand, thing, goal = x[:, HAND], x[:, OBJECT], x[:, GOAL]
        differences = torch.cat([thing - hand, goal - thing, goal - hand], 1)
        return torch.cat([super().forward(x), (GAIN * differences).clamp(-LIMIT, LIMIT)], 1)


@dataclass(frozen=True)
class Differences(Features):
    normalizes_itself = True

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        (width,) = spec.obs_shape
        return nn.Sequential(StateAndDifferences(width)), width + 9
