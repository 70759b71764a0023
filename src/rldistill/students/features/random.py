"""Random features: Fourier features and convolutions with random weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rldistill.core.fields import Positive, PositiveFloat, validated_dataclass
from rldistill.core.spec import PolicySpec
from rldistill.policies.encoding import flat_width
from rldistill.policies.layers import Flat, convolutions, keep_scale, require_convolutions, require_images
from rldistill.students.features.features import Features, Standardizer


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
