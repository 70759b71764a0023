"""Convolutional networks on images, channels first: the classic one, and the residual one of IMPALA."""

from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.core.errors import ConfigError
from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.spec import PolicySpec
from rldistill.policies.layers import (
    ActivationName,
    activation,
    convolutions,
    dense,
    keep_scale,
    require_convolutions,
    require_images,
)
from rldistill.policies.network import NetworkPolicy
from rldistill.students.student import Student


@validated_dataclass
class Cnn(Student):
    """Convolutions without padding, dense layers, then a linear one.

    The classic network (Mnih 2015) is channels 32, 64, 64, kernels 8, 4, 3, strides 4, 2, 1, hidden 512.
    """

    channels: tuple[Positive, ...] = (16, 32)
    kernels: tuple[Positive, ...] = (8, 4)
    strides: tuple[Positive, ...] = (4, 2)
    hidden: tuple[Positive, ...] = (128,)
    activation: ActivationName = "relu"

    hidden_as_features = True

    def __post_init__(self) -> None:
        require_convolutions(self.channels, self.kernels, self.strides)

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `spec`, with new weights; raise ConfigError if a kernel is larger than its input."""
        act = activation(self.activation)
        sizes = (self.channels, self.kernels, self.strides)
        layers, size = convolutions(require_images("a cnn", spec), sizes, act)
        hidden, width = dense(size, self.hidden, act)
        policy = NetworkPolicy(self, spec, nn.Sequential(*layers, nn.Flatten(), *hidden), width)
        keep_scale(policy, self.activation)
        policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # CPUs convolve twice as fast in it
        return policy


@validated_dataclass
class Impala(Student):
    """Stages of a convolution, a pooling that halves the image and two residual blocks, then dense layers.

    Espeholt 2018, arXiv 1802.01561, figure 3, whose network is channels 16, 32, 32 and hidden 256.
    """

    channels: Annotated[tuple[Positive, ...], MinLen(1)] = (16, 32, 32)
    hidden: tuple[Positive, ...] = (256,)

    hidden_as_features = True

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `spec`, with new weights; raise ConfigError if its images are too small."""
        depth, height, width = require_images("an impala", spec)
        stages: list[nn.Module] = []
        for channels in self.channels:
            if min(height, width) < 2:
                raise ConfigError(
                    f"channels: {len(self.channels)} stages are too many for images of {spec.obs_shape}. Use fewer."
                )
            stages += [nn.Conv2d(depth, channels, 3, padding=1), nn.MaxPool2d(3, 2, 1)]
            stages += [Residual(channels), Residual(channels)]
            depth, height, width = channels, (height + 1) // 2, (width + 1) // 2
        hidden, size = dense(depth * height * width, self.hidden, nn.ReLU)
        policy = NetworkPolicy(self, spec, nn.Sequential(*stages, nn.ReLU(), nn.Flatten(), *hidden), size)
        policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # CPUs convolve twice as fast in it
        return policy


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum for an image `[B, C, H, W]`."""
        residual: Tensor = self.second(F.relu(self.first(F.relu(x))))
        return x + residual
