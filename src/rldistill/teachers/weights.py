"""State dicts of networks that are built before their weights are loaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, RLDistillError
from rldistill.core.spec import PolicySpec
from rldistill.policies.actor_critic import Actor, ActorPolicy

Tensors = dict[str, Tensor]


class RebuildError(Exception):
    """A policy that an `Actor` cannot express; the message is the reason."""


class InconsistentFileError(RebuildError):
    """A file whose text or spec describes another policy than its tensors."""


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
