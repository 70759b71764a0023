"""Features of `examples/grid.yaml`: the standardized state of ANM6Easy, and its quarter of an hour as a one-hot vector.

Demand and generation are a table of the time, with steps and kinks that an mlp fits badly to one number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rldistill import Features, PolicySpec
from rldistill.students.features import Standardizer

QUARTERS = 96


class StateAndQuarter(Standardizer):
    """Layer from the state, whose last entry is the time, to the standardized state and 96 numbers of 0 or 1."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        quarter = torch.arange(QUARTERS, dtype=x.dtype) == x[:, -1:].round()
        return torch.cat([super().forward(x), quarter.float()], 1)


@dataclass(frozen=True)
class Quarters(Features):
    normalizes_itself = True

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        (width,) = spec.obs_shape
        return nn.Sequential(StateAndQuarter(width)), width + QUARTERS
