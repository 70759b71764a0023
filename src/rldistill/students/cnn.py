"""Convolutional network on frames, channels first."""

import torch
from torch import nn

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
