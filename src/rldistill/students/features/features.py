"""Features: fixed functions of the observation that linear students, mlps and trees take as input."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from rldistill.core.fields import Positive, PositiveFloat, validated_dataclass
from rldistill.core.spec import PolicySpec
from rldistill.policies.encoding import flat_width
from rldistill.policies.layers import (
    DataDependentLayer,
    Flat,
    convolutions,
    keep_scale,
    require_convolutions,
    require_images,
)

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


@validated_dataclass
class Fourier(Features):
    """sqrt(2 / D) cos(w . x / s + b), w normal, b uniform, D = `num_features`, x of n entries.

    A linear function of these approximates one in the space of a Gaussian kernel of width s = `bandwidth` sqrt(n)
    (Rahimi 2007).
    """

    num_features: Positive = 1024
    bandwidth: PositiveFloat = 1.0

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the layers, with new random numbers, and the number of features."""
        width = flat_width(spec)
        fourier = RandomFourierFeatures(width, self.num_features, self.bandwidth * math.sqrt(width))
        return nn.Sequential(Flat(), fourier), self.num_features


class RandomFourierFeatures(nn.Module):
    """sqrt(2 / D) cos(x W / scale + b), W and b random and fixed."""

    def __init__(self, width: int, num_features: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(num_features, width) / scale)
        self.register_buffer("bias", 2 * math.pi * torch.rand(num_features))
        self.scale = math.sqrt(2 / num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features `[B, D]`."""
        phase: Tensor = nn.functional.linear(x, self.weight, self.bias)  # type: ignore[arg-type]
        return self.scale * phase.cos()


@validated_dataclass
class RandomConv(Features):
    """Convolutions with random fixed weights, ReLU after each, the last flattened and standardized."""

    channels: tuple[Positive, ...] = (32, 64)
    kernels: tuple[Positive, ...] = (8, 4)
    strides: tuple[Positive, ...] = (4, 2)

    def __post_init__(self) -> None:
        require_convolutions(self.channels, self.kernels, self.strides)

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the layers, with new random weights, and the number of features."""
        shape = require_images("random_conv", spec)
        layers, size = convolutions(shape, (self.channels, self.kernels, self.strides), nn.ReLU)
        net = nn.Sequential(*layers, nn.Flatten(), Standardizer(size))
        keep_scale(net)
        return net.requires_grad_(False), size
