"""Layers and initialisation shared by all networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.core.spec import Obs

if TYPE_CHECKING:
    pass


ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__.lower(): kind
    for kind in (
        nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.SELU, nn.CELU, nn.LeakyReLU, nn.ReLU6, nn.Sigmoid,
        nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink,
        nn.Softshrink, nn.Hardshrink, nn.Identity,
    )
}  # fmt: skip


class DataDependentLayer(nn.Module, ABC):
    """A layer with numbers that are taken from the data before training, and then stay."""

    @abstractmethod
    def fit_features(self, x: Tensor) -> None:
        """Take them from a sample of what the layer will be fed."""


class Flat(nn.Module):
    """One vector `[B, N]` of an observation, whose entries follow one another where it is a dict."""

    def forward(self, obs: Obs) -> Tensor:
        if isinstance(obs, Tensor):
            return obs.flatten(1)
        return torch.cat([entry.flatten(1) for entry in obs.values()], 1)


def keep_scale(net: nn.Module, nonlinearity: str = "relu") -> None:
    """Draw new orthogonal weights that keep the scale of what passes through the activations (Saxe 2014).

    PyTorch's own shrink it at each layer: the outputs of the classic network for 256 states of Pong then differ by
    0.0002, and Adam, which magnifies small gradients, kills the ReLUs before that has grown. The last layer begins at
    a tenth, so that nothing is preferred before anything is learned.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    gain = nn.init.calculate_gain("tanh" if nonlinearity == "tanh" else "relu")
    for layer in layers:
        nn.init.orthogonal_(layer.weight, 0.1 if layer is layers[-1] else gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def activation(name: str, field: str) -> type[nn.Module]:
    """The activation of that name, or a ConfigError with the nearest one."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConfigError(f"{field}: there is no activation {name!r}.{did_you_mean(str(name), ACTIVATIONS)}")
    return ACTIVATIONS[name]


def dense(width: int, hidden: Sequence[int], act: type[nn.Module]) -> tuple[list[nn.Module], int]:
    """Linear layers with activations, and the width of the last."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), act()]
        width = size
    return layers, width


def require_positive(field: str, sizes: Sequence[Any]) -> None:
    """Raise ConfigError unless all sizes are positive integers."""
    if not isinstance(sizes, tuple | list):
        raise ConfigError(f"{field}: expected a list of positive integers, found {sizes!r}")
    for size in sizes:
        if type(size) is not int or size < 1:
            raise ConfigError(f"{field}: expected positive integers, found {size!r}")


def flatten_weights(*networks: nn.Module) -> nn.Parameter:
    """One parameter that the networks' own become views of, and its gradient likewise.

    The optimiser and the clipping then take one operation each instead of one for every layer, which for a small
    student is half of the time.
    """
    own = [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]
    flat = nn.Parameter(torch.empty(sum(parameter.numel() for parameter in own), device=own[0].device))
    flat.grad = torch.zeros_like(flat)
    at = 0
    for parameter in own:
        weight, gradient = (
            whole[at:].as_strided(parameter.shape, parameter.stride()) for whole in (flat.detach(), flat.grad)
        )
        parameter.data, parameter.grad = weight.copy_(parameter.detach()), gradient
        at += parameter.numel()
    return flat
