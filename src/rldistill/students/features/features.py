"""Features: fixed functions of the observation that linear students, mlps and trees take as input, and the simplest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from rldistill.core.fields import validated_dataclass
from rldistill.core.spec import PolicySpec
from rldistill.policies.encoding import flat_width
from rldistill.policies.layers import DataDependentLayer, Flat

CLIP_STD = 20.0
"""Limit of the absolute value of a standardized feature."""


class Features(ABC):
    """Base of the configurations of features.

    Features of your own are a frozen dataclass that inherits from this class (`examples/features/` has two).

    Attributes:
        normalizes_itself: True if the features are computed from observations that are neither encoded nor
            standardized, such as bytes.
        standardized_for_weights: True if students with weights standardize these features; trees never do.
    """

    normalizes_itself: ClassVar[bool] = False
    standardized_for_weights: ClassVar[bool] = False

    @abstractmethod
    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the layers that compute the features of observations of `spec`, and the number of features.

        A layer with numbers from the data is a `DataDependentLayer`; random weights are frozen or buffers.

        Raises:
            ConfigError: The features cannot be computed for these observations.
        """


class Standardizer(DataDependentLayer):
    """(x - mean) / std of each feature over a sample of the data, clipped to +- CLIP_STD.

    The std of a feature that is constant in the sample counts as 1.

    A feature that hardly moves in the sample may move later: a paddle of Pong whose column was once 1,460 standard
    deviations from its mean would alone decide the output of a linear student, and its gradient.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit_features(self, x: Tensor) -> None:
        """Compute mean and standard deviation of a sample `[N, width]`."""
        std = x.std(0, correction=0)
        self.mean.copy_(x.mean(0))
        self.std.copy_(torch.where(std < 1e-6, 1.0, std))

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardized features `[B, width]`."""
        scaled: Tensor = (x - self.mean) / self.std
        return scaled.clamp(-CLIP_STD, CLIP_STD)


@validated_dataclass
class Raw(Features):
    """The flattened observation; pixels are standardized with one number for all."""

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the layers and the number of features."""
        return nn.Sequential(Flat()), flat_width(spec)


@validated_dataclass
class Standardized(Features):
    """The flattened observation, each entry standardized over the data and clipped to 20 standard deviations.

    For pixels this weighs a rare flicker as much as a paddle; other observations are standardized for every student.
    """

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the layers and the number of features."""
        width = flat_width(spec)
        return nn.Sequential(Flat(), Standardizer(width)), width
