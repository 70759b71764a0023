"""Layers in a state dict, and actors built from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, RLDistillError
from rldistill.core.spec import PolicySpec
from rldistill.policies.actor_critic import Actor, ActorPolicy

Tensors = dict[str, Tensor]
Layer = tuple[Tensor, Tensor]
"""Weight and bias."""
CONVOLUTION_INDICES = (0, 2, 4, 7)
"""Indices of the layers in an `Actor`'s image extractor: three convolutions and a dense layer."""


class RebuildError(Exception):
    """A policy that an `Actor` cannot express; the message is the reason."""


class InconsistentFileError(RebuildError):
    """A file whose text or spec describes another policy than its tensors."""


def find_layers(tensors: Tensors, pattern: str) -> list[Layer]:
    """Return the layers of a sequence in order; `pattern` matches their names, with the index as its one group."""
    names: dict[int, str] = {}
    for name in tensors:
        if match := re.fullmatch(rf"({pattern})\.weight", name):
            names.setdefault(int(match[2]), match[1])
    return [find_layer(tensors, names[index]) for index in sorted(names)]


def find_layer(tensors: Tensors, name: str) -> Layer:
    """Return a layer by its name; a missing bias is zero."""
    weight = tensors[f"{name}.weight"]
    return weight, tensors.get(f"{name}.bias", torch.zeros(len(weight)))


def widths(layers: Iterable[Layer]) -> tuple[int, ...]:
    """Return the number of outputs of each layer."""
    return tuple(len(weight) for weight, _ in layers)


def name_layer(name: str, layer: Layer) -> Tensors:
    """Return the tensors of a layer under its new name."""
    return {f"{name}.weight": layer[0], f"{name}.bias": layer[1]}


def name_layers(prefix: str, layers: Sequence[Layer], indices: Sequence[int] | None = None) -> Tensors:
    """Return the tensors of a sequence of layers under new names, by default with an activation after each layer."""
    indices = range(0, 2 * len(layers), 2) if indices is None else indices
    if len(layers) != len(indices):
        raise InconsistentFileError(f"{len(layers)} layers, but {prefix} has {len(indices)}")
    tensors: Tensors = {}
    for index, layer in zip(indices, layers, strict=True):
        tensors |= name_layer(f"{prefix}.{index}", layer)
    return tensors


def require_fit(config: Actor, spec: PolicySpec, state: Tensors) -> None:
    """Raise RebuildError unless `state` are the parameters of the actor for `spec`."""
    try:
        with torch.device("meta"):  # a wrong shape must cost no memory before it is detected
            expected = dict(config.build(spec).named_parameters())
    except (RLDistillError, RuntimeError, TypeError, OverflowError, KeyError) as error:
        raise RebuildError(str(error)) from None
    if set(state) != set(expected):
        raise InconsistentFileError(f"unexpected or missing tensors: {', '.join(sorted(set(state) ^ set(expected)))}")
    for name, value in state.items():
        if not value.is_floating_point():
            raise InconsistentFileError(f"integers for {name}")
        if value.shape != expected[name].shape:
            raise InconsistentFileError(
                f"a tensor of shape {tuple(value.shape)} for {name}, which has {tuple(expected[name].shape)}"
            )


def build_actor(config: Actor, spec: PolicySpec, state: Tensors) -> ActorPolicy:
    """Return the actor with these parameters; raise RebuildError if they do not fit."""
    require_fit(config, spec, state)
    policy = config.build(spec)
    policy.load_state_dict(state, strict=False)
    return policy.eval()


def load_weights(network: nn.Module, tensors: Tensors, problem: str, remedy: str) -> None:
    """Load a state dict; raise ConfigError with `problem`, the reason and `remedy` if it does not fit."""
    own = network.state_dict()
    for name, value in tensors.items():  # PyTorch would convert integers to floats
        if isinstance(own.get(name), Tensor) and own[name].is_floating_point() != value.is_floating_point():
            raise ConfigError(f"{problem}: {name} is of {value.dtype}, expected {own[name].dtype}. {remedy}")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{problem}: {' '.join(str(error).split())}. {remedy}") from None
