"""A convolutional network on frames, channels first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rldistill.core.errors import ConfigError
from rldistill.core.spec import PolicySpec
from rldistill.policies.layers import activation, dense, keep_scale, require_positive
from rldistill.policies.network import NetworkPolicy


@dataclass(frozen=True)
class Cnn:
    """Convolutions without padding, dense layers, then a linear one.

    The classic network (Mnih 2015) is channels 32, 64, 64, kernels 8, 4, 3, strides 4, 2, 1, hidden 512.
    """

    channels: tuple[int, ...] = (16, 32)
    kernels: tuple[int, ...] = (8, 4)
    strides: tuple[int, ...] = (4, 2)
    hidden: tuple[int, ...] = (128,)
    activation: str = "relu"

    def __post_init__(self) -> None:
        for name in ("channels", "kernels", "strides", "hidden"):
            require_positive(name, getattr(self, name))
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ConfigError("channels, kernels, strides: expected one of each for every convolution")
        activation(self.activation, "activation")

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """The student for `spec`, with new weights; raises ConfigError if a kernel is larger than its input."""
        depth, height, width = require_pictures("a cnn", spec)
        act = activation(self.activation, "activation")
        layers: list[nn.Module] = []
        for channels, kernel, stride in zip(self.channels, self.kernels, self.strides, strict=True):
            if kernel > min(height, width):
                raise ConfigError(f"kernels: {kernel} is larger than its input of {height}x{width}")
            layers += [nn.Conv2d(depth, channels, kernel, stride), act()]
            depth, height, width = channels, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        hidden, size = dense(depth * height * width, self.hidden, act)
        policy = NetworkPolicy(self, spec, nn.Sequential(*layers, nn.Flatten(), *hidden), size)
        keep_scale(policy, self.activation)
        policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # CPUs convolve twice as fast in it
        return policy


def require_pictures(student: str, spec: PolicySpec) -> tuple[int, int, int]:
    """Channels, height and width of the observations; raises ConfigError for what are no pictures, channels first."""
    if len(spec.obs_shape) != 3:
        raise ConfigError(f"{student} takes observations [channels, height, width], these are {spec.obs_shape}")
    depth, height, width = spec.obs_shape
    if width <= 4 < depth:
        raise ConfigError(
            f"{student} takes observations [channels, height, width]; these are {spec.obs_shape}, channels last: add "
            "{name: ChannelsFirst} to env.wrappers"
        )
    return depth, height, width
