"""Devices on which policies compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import nn

from rldistill.core.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
CPU = torch.device("cpu")


def resolve_device(name: str, where: str = "device") -> torch.device:
    """Return the device `name`; `auto` is a GPU if there is one. Raise ConfigError at `where` if it is missing."""
    if name not in get_args(Device):
        raise ConfigError(f"{where}: expected {', '.join(get_args(Device))}, found {name!r}. Use one of these.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{where}: PyTorch finds no GPU. Use auto or cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def on_device(device: torch.device, *policies: object) -> Iterator[None]:
    """Move the networks of `policies` to `device`, and back at the end; others compute on the CPU as before."""
    networks = [network for policy in policies for network in _networks(policy)]
    before = [next((tensor.device for tensor in network.state_dict().values()), CPU) for network in networks]
    try:
        for network in networks:
            network.to(device)
        yield
    finally:
        for network, original in zip(networks, before, strict=True):
            network.to(original)


def _networks(policy: object) -> Iterator[nn.Module]:
    """Yield the networks of a policy, also those inside wrappers and ensembles, which are dataclasses."""
    if isinstance(policy, nn.Module):
        yield policy
    elif dataclasses.is_dataclass(policy):
        for field in dataclasses.fields(policy):
            value = getattr(policy, field.name)
            for part in value if isinstance(value, tuple) else (value,):
                yield from _networks(part)
