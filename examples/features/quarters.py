"""Features of `examples/grid.yaml`: the charge of the storage unit, and the quarter of an hour as a one-hot vector.

The controller's decision depends on both alone. The other entries of the state follow from the last decision, from
which a student would learn rules that fail in rare states. Demand and generation are a table of the time, with steps
and kinks that an mlp fits badly to one number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rldistill import Features, PolicySpec
from rldistill.students.features import Standardizer

CHARGE, QUARTERS = slice(14, 15), 96
"""Entry of the observation of ANM6Easy, whose last entry is the time, and number of quarters of an hour in a day."""


class ChargeAndQuarter(Standardizer):
    """Layer from the state to the standardized charge and 96 numbers of 0 or 1."""

    def __init__(self) -> None:
        super().__init__(1)

    def fit_features(self, x: Tensor) -> None:
        super().fit_features(x[:, CHARGE])

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        quarter = torch.arange(QUARTERS, dtype=x.dtype) == x[:, -1:].round()
        return torch.cat([super().forward(x[:, CHARGE]), quarter.float()], 1)


@dataclass(frozen=True)
class Quarters(Features):
    normalizes_itself = True

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        return nn.Sequential(ChargeAndQuarter()), 1 + QUARTERS
