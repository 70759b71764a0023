"""The network behind every student that learns by gradient: a body, a last linear layer, a head."""

# ruff: noqa: F722 (shapes in annotations are not Python)
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rldistill.errors import ConfigError, did_you_mean
from rldistill.types import Obs, PolicyOutput, PolicySpec

if TYPE_CHECKING:
    from jaxtyping import Float

    from rldistill.students import AnyStudent

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "gelu": nn.GELU}

LOG_STD_RANGE = (-20.0, 2.0)


class NetworkPolicy(nn.Module):
    """A policy that is `output(body(obs))`.

    The log_std of a `gaussian` head is the same in all states (PPO), that of a `squashed_gaussian` one is not (SAC).

    Observations (uint8 ones divided by 255) are standardised with `obs_mean` and `obs_std`, which are 0 and 1 until
    `standardise` sets them: one number for all pixels, one for each entry of other observations.
    """

    obs_mean: Tensor
    obs_std: Tensor

    def __init__(self, config: AnyStudent, spec: PolicySpec, body: nn.Module, width: int) -> None:
        super().__init__()
        self.config, self._spec, self.body = config, spec, body
        gaussian = spec.head.kind == "gaussian"
        self.output = nn.Linear(width, spec.head.num_params // (2 if gaussian else 1))
        self.log_std = nn.Parameter(torch.zeros(self.output.out_features)) if gaussian else None
        shape = () if spec.obs_dtype == "uint8" else spec.obs_shape
        self.register_buffer("obs_mean", torch.zeros(shape))
        self.register_buffer("obs_std", torch.ones(shape))

    @property
    def spec(self) -> PolicySpec:
        """What the policy takes and gives."""
        return self._spec

    def initial_state(self, batch_size: int) -> None:
        """None: a feed-forward network has no state."""

    def standardise(self, mean: Float[Tensor, "*obs"], std: Float[Tensor, "*obs"]) -> None:
        """Subtract `mean` from observations and divide them by `std`, both of the shape that `obs_mean` has."""
        self.obs_mean.copy_(mean)
        self.obs_std.copy_(std)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Observations `[B, *obs_shape]` to the head's parameters `[B, P]`."""
        if not isinstance(obs, Tensor):
            raise ConfigError("a network student takes one tensor; dict observations need a view")
        if obs.dtype == torch.uint8:
            # In two passes over what is four times as large as the frames: for a small student they cost the most.
            scaled = (obs - 255 * self.obs_mean).mul_(1 / (255 * self.obs_std))
        else:
            scaled = ((obs - self.obs_mean) / self.obs_std).float()
        features = self.body(scaled)
        params = self.output(features)
        if self.log_std is not None:
            params = torch.cat([params, self.log_std.expand_as(params)], -1)
        if self._spec.head.kind == "squashed_gaussian":
            mean, log_std = params.chunk(2, -1)
            params = torch.cat([mean, log_std.clamp(*LOG_STD_RANGE)], -1)
        return PolicyOutput(self._spec.head, params, features=features), None


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
