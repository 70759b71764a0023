"""Network for dict observations: convolutions on each picture, together with the other entries."""

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.spec import Obs, ObsPart, PolicySpec
from rldistill.policies.layers import (
    ActivationName,
    activation,
    channels_last,
    convolutions,
    dense,
    keep_scale,
    require_convolutions,
)
from rldistill.policies.network import NetworkPolicy
from rldistill.students.cnn import Cnn
from rldistill.students.student import Student


@validated_dataclass
class MultiInput(Student):
    """A cnn for each picture, next to the other entries of a dict, then dense layers, as SB3's CombinedExtractor.

    A kernel that is larger than its input is cut to it. Pictures may have their channels first or last.

    Attributes:
        channels: Channels of the convolutions on each picture.
        kernels: Kernels of the convolutions.
        strides: Strides of the convolutions.
        picture_features: Width of the dense layer after the convolutions on each picture.
        hidden: Widths of the dense layers on all entries.
        activation: Activation of all layers.
    """

    channels: tuple[Positive, ...] = (16, 32)
    kernels: tuple[Positive, ...] = (8, 4)
    strides: tuple[Positive, ...] = (4, 2)
    picture_features: Positive = 64
    hidden: tuple[Positive, ...] = (64,)
    activation: ActivationName = "relu"

    hidden_as_features = True

    def __post_init__(self) -> None:
        require_convolutions(self.channels, self.kernels, self.strides)

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `spec`, with new weights; raise ConfigError if no entry is a picture."""
        pictures = {key: part for key, part in spec.entries.items() if part.is_picture}
        if not pictures:
            names = ", ".join(filter(None, spec.entries)) or "the observation"
            raise ConfigError(
                f"a multi_input student takes pictures [channels, height, width]; {names} has none. Use mlp."
            )
        act = activation(self.activation)
        encoders = {key: self._encoder(part) for key, part in pictures.items()}
        others = sum(part.width for key, part in spec.entries.items() if key not in pictures)
        hidden, width = dense(len(pictures) * self.picture_features + others, self.hidden, act)
        policy = NetworkPolicy(self, spec, nn.Sequential(EntriesLayer(encoders), *hidden), width)
        keep_scale(policy, self.activation)
        policy.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # CPUs convolve twice as fast in it
        return policy

    def _encoder(self, part: ObsPart) -> nn.Sequential:
        last, act = channels_last(part.shape), activation(self.activation)
        depth, height, width = (*part.shape[2:], *part.shape[:2]) if last else part.shape
        kernels, side = [], min(height, width)
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            kernels.append(min(kernel, side))
            side = (side - kernels[-1]) // stride + 1
        sizes = (self.channels, kernels, self.strides)
        layers, size = convolutions((depth, height, width), sizes, act)
        own, _ = dense(size, (self.picture_features,), act)
        return nn.Sequential(*([ChannelsToFront()] if last else []), *layers, nn.Flatten(), *own)


class ChannelsToFront(nn.Module):
    """Transposition of pictures `[B, H, W, C]` to `[B, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the transposed pictures."""
        return x.movedim(-1, 1)


def picture_network(spec: PolicySpec) -> Cnn | MultiInput | None:
    """Return a small network for images, or for dicts with images; None for other observations."""
    if len(spec.obs_shape) == 3:
        return Cnn()
    return MultiInput() if spec.has_pictures else None


class EntriesLayer(nn.Module):
    """Features of the pictures by their `encoders`, and the values of the other entries, in the order of the dict."""

    def __init__(self, encoders: dict[str, nn.Sequential]) -> None:
        super().__init__()
        self.keys = [*encoders]
        self.encoders = nn.ModuleList(encoders.values())  # a ModuleDict allows no dots in names

    def forward(self, obs: Obs) -> Tensor:
        """Return the features `[B, width]`."""
        encoders = dict(zip(self.keys, self.encoders, strict=True))
        entries = {"": obs} if isinstance(obs, Tensor) else obs
        return torch.cat([encoders[key](x) if key in encoders else x.flatten(1) for key, x in entries.items()], 1)
