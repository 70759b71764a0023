"""A multi-layer perceptron on the flattened observation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rldistill.students.network import Flat, NetworkPolicy, activation, dense, flat_width, keep_scale, require_positive
from rldistill.types import PolicySpec


@dataclass(frozen=True)
class Mlp:
    """Dense layers of the sizes `hidden`, then a linear one."""

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "relu"

    def __post_init__(self) -> None:
        require_positive("hidden", self.hidden)
        activation(self.activation, "activation")

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """The student for `spec`, with new weights."""
        layers, width = dense(flat_width(spec), self.hidden, activation(self.activation, "activation"))
        policy = NetworkPolicy(self, spec, nn.Sequential(Flat(), *layers), width)
        keep_scale(policy, self.activation)
        return policy
