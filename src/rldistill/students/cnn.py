"""Convolutional network on frames, channels first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rldistill.core.spec import PolicySpec
from rldistill.policies.layers import (
    activation,
    convolutions,
    dense,
    keep_scale,
    require_convolutions,
    require_images,
    require_positive,
)
from rldistill.policies.network import NetworkPolicy
from rldistill.students.student import Student


@dataclass(frozen=True)
class Cnn(Student):
    """Convolutions without padding, dense layers, then a linear one.

    The classic network (Mnih 2015) is channels 32, 64, 64, kernels 8, 4, 3, strides 4, 2, 1, hidden 512.
    """

    channels: tuple[int, ...] = (16, 32)
    kernels: tuple[int, ...] = (8, 4)
    strides: tuple[int, ...] = (4, 2)
    hidden: tuple[int, ...] = (128,)
    activation: str = "relu"

    hidden_as_features = True

    def __post_init__(self) -> None:
        require_convolutions(self.channels, self.kernels, self.strides)
        require_positive("hidden", self.hidden)
        activation(self.activation)

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
