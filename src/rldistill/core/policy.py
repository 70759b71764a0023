"""Policies, their outputs, batches of these as labels, and the devices on which policies compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.heads import ActionHead
from rldistill.core.spec import Obs, PolicySpec

T = TypeVar("T")
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class PolicyOutput:
    """Output of a policy for a batch of observations.

    Attributes:
        head: the meaning of `params`.
        params: `[..., P]`.
        value: the state values, `[...]`.
        features: the last hidden layer, `[..., F]`.
        mask: the legal actions, `[..., P]`; `masked` sets it.
        members: the params of the members of a committee, one after another, `[..., sum P]`.
    """

    head: ActionHead
    params: Tensor
    value: Tensor | None = None
    features: Tensor | None = None
    mask: Tensor | None = None
    members: Tensor | None = None

    def masked(self, mask: Tensor) -> PolicyOutput:
        """Return the output without actions that `mask`, `[..., sum(head.choices)]`, excludes, also from losses."""
        params, legal = self.head.masked(self.params, mask.bool())
        return replace(self, params=params, mask=legal)

    def to(self, device: torch.device) -> PolicyOutput:
        """Return the output with its tensors on `device`."""
        return self.map(lambda part: part.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> PolicyOutput:
        """Return the output with `function` applied to each of its tensors."""
        parts = self.value, self.features, self.mask, self.members
        others = (None if part is None else function(part) for part in parts)
        return PolicyOutput(self.head, function(self.params), *others)

    def rows(self, rows: Tensor) -> PolicyOutput:
        """Return the output for some observations of the batch, without features and members."""
        return replace(self, features=None, members=None).map(lambda part: part[rows])

    def mode(self) -> Tensor:
        """Return the most likely, highest-valued or mean action: `[...]` for one integer, `[..., A]` otherwise."""
        return self.head.bounded(self.head.raw_mode(self._legal_params()))

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return a random action; the mode of `q_values` and `deterministic` heads."""
        return self.head.bounded(self.raw_sample(generator))

    def raw_sample(self, generator: torch.Generator) -> Tensor:
        """Return a random action before its bounds."""
        return self.head.raw_sample(self._legal_params(), generator)

    def log_prob(self, raw_action: Tensor) -> Tensor:
        """Return log pi(raw_action), `[...]`."""
        return self.head.log_prob(self.params, raw_action)

    def entropy(self) -> Tensor:
        """Return the entropy in nats, `[...]`."""
        return self.head.entropy(self.params)

    def agreement(self, other: PolicyOutput) -> Tensor:
        """Return the share of the parts of a discrete action in which both modes are equal, `[...]`."""
        same = (self.mode() == other.mode()).float()
        return same if self.head.single_choice else same.mean(-1)

    def _legal_params(self) -> Tensor:
        return self.params if self.mask is None else self.params.masked_fill(~self.mask, -torch.inf)


@dataclass(frozen=True)
class Labels:
    """Data that losses compare a student with; leading dimensions `[B]`, or `[T, B]` for sequences.

    Attributes:
        teacher: the teacher's output for the observation.
        next_teacher: its output for the next observation; the last one of an episode that ended.
        action: the recorded action.
        reward: the reward of that action.
        return_to_go: the discounted return from there.
        terminated: booleans; a truncated episode did not terminate.
    """

    teacher: PolicyOutput
    next_teacher: PolicyOutput
    action: Tensor
    reward: Tensor
    return_to_go: Tensor
    terminated: Tensor


@dataclass(frozen=True)
class Batch(Labels):
    """Labelled observations, and the weight of each in the mean loss."""

    obs: Obs
    weight: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `function` applied to each of its tensors."""
        parts: dict[str, Any] = {
            name: part.map(function) if isinstance(part, PolicyOutput) else function(part)
            for name, part in vars(self).items()
        }
        return Batch(**parts)


class Policy(Protocol):
    """A teacher or a student."""

    @property
    def spec(self) -> PolicySpec:
        """The input and output."""

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return the state `[B, ...]` before the first observation; None if the policy has no memory."""

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for observations `[B, ...]`, and the next state."""


@dataclass(frozen=True)
class PolicyWrapper:
    """Base of policies around another one, whose results are those of the inner policy by default."""

    policy: Policy

    @property
    def spec(self) -> PolicySpec:
        """The spec of the policy."""
        return self.policy.spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return the initial state of the policy."""
        return self.policy.initial_state(batch_size)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output of the policy, and its next state."""
        return self.policy(obs, state)


@dataclass(frozen=True)
class ObsTransformPolicy(PolicyWrapper):
    """A policy whose observations pass through `transform`."""

    transform: Callable[[Tensor], Tensor]

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the policy's output for transformed observations, and its next state."""
        assert isinstance(obs, Tensor)
        return self.policy(self.transform(obs), state)


def resolve_device(name: str, where: str = "device") -> torch.device:
    """Return the device `name`; `auto` is a GPU if there is one. Raise ConfigError at `where` if it is missing."""
    if name not in get_args(Device):
        raise ConfigError(f"{where}: expected {', '.join(get_args(Device))}, found {name!r}. Use one of these.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{where}: PyTorch finds no GPU. Use auto or cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context of a forward pass in this precision; `auto` is bfloat16 where the hardware multiplies it."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    if precision == "bfloat16" or (precision == "auto" and fast):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()  # ten times faster than a disabled autocast, which counts for a small student


def to_device(batch: T, device: torch.device) -> T:
    """Return a dataclass with its tensors and policy outputs on `device`, copied from pinned memory."""
    if device == CPU:
        return batch

    def move(part: Any) -> Any:
        if isinstance(part, PolicyOutput):
            return part.map(move)
        return part.pin_memory().to(device, non_blocking=True) if isinstance(part, Tensor) else part

    return type(batch)(**{name: move(part) for name, part in vars(batch).items()})


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
