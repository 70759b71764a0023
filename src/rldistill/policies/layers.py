"""Layers and initialization shared by all networks."""

import ast
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, did_you_mean, error_text
from rldistill.core.fields import import_name, invalid
from rldistill.core.spec import Obs, PolicySpec

ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__.lower(): kind
    for kind in (
        nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.SELU, nn.CELU, nn.LeakyReLU, nn.ReLU6, nn.Sigmoid,
        nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink,
        nn.Softshrink, nn.Hardshrink, nn.Identity,
    )
}  # fmt: skip


WEIGHTED_ACTIVATIONS: dict[str, type[nn.Module]] = {"prelu": nn.PReLU}
"""Activations that teachers may have; the exporters do not know them."""
MAX_ARGUMENT = 1e5


def _require_activation(name: str) -> str:
    try:
        activation(name)
    except ConfigError as error:
        raise invalid(str(error).removeprefix("activation: ")) from None
    return name


ActivationName = Annotated[str, AfterValidator(_require_activation), Field(json_schema_extra={"enum": [*ACTIVATIONS]})]


class DataDependentLayer(nn.Module, ABC):
    """Layer whose numbers are computed from the data before training and then fixed."""

    @abstractmethod
    def fit_features(self, x: Tensor) -> None:
        """Compute the numbers from a sample of the layer's inputs."""


class Flat(nn.Module):
    """Flattening to one vector `[B, N]`, in which the entries of a dict follow one another."""

    def forward(self, obs: Obs) -> Tensor:
        """Return the vector."""
        if isinstance(obs, Tensor):
            return obs.flatten(1) if obs.ndim > 1 else obs[:, None]  # of numbers without a shape
        return torch.cat([entry.reshape(len(entry), -1) for entry in obs.values()], 1)


def keep_scale(net: nn.Module, nonlinearity: str = "relu") -> None:
    """Draw new orthogonal weights that keep the scale of activations from layer to layer (Saxe 2014).

    PyTorch's own initialization shrinks it: the outputs of the classic network for 256 states of Pong then differ by
    0.0002, and Adam, which magnifies small gradients, kills the ReLUs before that has grown. The last layer starts at
    a tenth of the scale, so that the first policy is nearly uniform.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    gain = nn.init.calculate_gain("tanh" if nonlinearity == "tanh" else "relu")
    for layer in layers:
        nn.init.orthogonal_(layer.weight, 0.1 if layer is layers[-1] else gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def activation(name: str, field: str = "activation") -> Callable[[], nn.Module]:
    """Return the activation `name`, or `name(0.2)` with numbers as arguments.

    Raise ConfigError, with the nearest name if there is none.
    """
    base, _, arguments = str(name).partition("(")
    known = ACTIVATIONS | WEIGHTED_ACTIVATIONS
    if not isinstance(name, str) or base not in known:
        raise ConfigError(f"{field}: there is no activation {name!r}.{did_you_mean(base, ACTIVATIONS)}")
    if not arguments:
        return known[base]
    try:
        call = ast.parse(f"f({arguments}", mode="eval").body
        assert isinstance(call, ast.Call)
        args = [ast.literal_eval(value) for value in call.args]
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        if not all(
            type(value) in (bool, int, float) and abs(value) <= MAX_ARGUMENT for value in [*args, *kwargs.values()]
        ):
            raise ValueError("expected small numbers")
        function = partial(known[base], *args, **kwargs)
        function()
    except Exception as error:  # from the constructor
        raise ConfigError(
            f"{field}: {name!r} is no activation with numbers as arguments ({error_text(error)})"
        ) from None
    return function


def has_arguments(layer: nn.Module) -> bool:
    """Return True if an activation has weights, or other settings than its class has by default."""
    if type(layer) not in (ACTIVATIONS | WEIGHTED_ACTIVATIONS).values():
        return False
    text = re.sub(r"(, )?inplace=True", "", str(layer))
    return bool(layer.state_dict()) or text != str(type(layer)())


def import_activation(name: str, field: str) -> None:
    """Import an activation of the user's own, `module:Class`; raise ConfigError if it is no `torch.nn.Module`."""
    # The name comes from a run file, Python or the command line: files of policies only use imported activations.
    base = name.partition("(")[0]
    if ":" in base and base not in ACTIVATIONS:
        cls = import_name(base, field)
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise ConfigError(f"{field}: {base} is no subclass of torch.nn.Module. Name one that is.")
        ACTIVATIONS[base] = cls
    activation(name, field)


def dense(width: int, hidden: Sequence[int], act: Callable[[], nn.Module]) -> tuple[list[nn.Module], int]:
    """Return linear layers with activations, and the width of the last."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), act()]
        width = size
    return layers, width


def convolutions(
    shape: tuple[int, int, int],
    sizes: tuple[Sequence[int], Sequence[int], Sequence[int]],
    act: Callable[[], nn.Module],
    field: str = "kernels",
) -> tuple[list[nn.Module], int]:
    """Return convolutions without padding, an activation after each, and the number of values after the last.

    `shape` is that of the input, `[channels, height, width]`; `sizes` are the channels, kernels and strides. Raise
    ConfigError at `field` if a kernel is larger than its input.
    """
    depth, height, width = shape
    layers: list[nn.Module] = []
    for channels, kernel, stride in zip(*sizes, strict=True):
        if kernel > min(height, width):
            raise ConfigError(f"{field}: {kernel} is larger than its input of {height}x{width}. Use a smaller kernel.")
        layers += [nn.Conv2d(depth, channels, kernel, stride), act()]
        depth, height, width = channels, (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return layers, depth * height * width


def require_convolutions(channels: Sequence[int], kernels: Sequence[int], strides: Sequence[int]) -> None:
    """Raise ConfigError unless there are one number of channels, one kernel and one stride for every convolution."""
    for name, sizes in {"kernels": kernels, "strides": strides}.items():
        if len(sizes) != len(channels):
            raise ConfigError(f"{name}: expected one for each of the {len(channels)} channels, found {len(sizes)}")


def channels_last(shape: tuple[int, ...]) -> bool:
    """Return True for `[H, W, C]`: C is at most 4, or H and W are equal. More planes of other sizes are ambiguous."""
    first, second, third = shape
    return third <= 4 < first or 4 < first == second != third


def require_images(student: str, spec: PolicySpec) -> tuple[int, int, int]:
    """Return channels, height and width of the observations; raise ConfigError unless they are images like that."""
    if spec.parts:
        raise ConfigError(f"{student} takes one picture, and the observations are dicts. Use multi_input.")
    if len(spec.obs_shape) != 3:
        raise ConfigError(f"{student} takes observations [channels, height, width], these are {spec.obs_shape}")
    depth, height, width = spec.obs_shape
    if channels_last(spec.obs_shape):
        raise ConfigError(
            f"{student} takes observations [channels, height, width]; these are {spec.obs_shape}, channels last. Add "
            "{name: ChannelsFirst} to env.wrappers."
        )
    return depth, height, width


def flatten_weights(*networks: nn.Module) -> nn.Parameter:
    """Return one parameter of which the networks' own parameters, and their gradients, become views.

    The optimizer and the clipping then take one operation each instead of one for every layer, which for a small
    student is half of the time.
    """
    every = dict.fromkeys(parameter for network in networks for parameter in network.parameters())  # shared ones once
    own = [parameter for parameter in every if parameter.requires_grad]
    flat = nn.Parameter(torch.empty(sum(parameter.numel() for parameter in own), device=own[0].device))
    flat.grad = torch.zeros_like(flat)
    offset = 0
    for parameter in own:
        weight, gradient = (
            whole[offset:].as_strided(parameter.shape, parameter.stride()) for whole in (flat.detach(), flat.grad)
        )
        parameter.data, parameter.grad = weight.copy_(parameter.detach()), gradient
        offset += parameter.numel()
    return flat
