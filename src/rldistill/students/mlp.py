"""A multi-layer perceptron on the flattened observation, or on fixed features of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rldistill.core.spec import PolicySpec
from rldistill.policies.layers import activation, dense, keep_scale, require_positive
from rldistill.policies.network import NetworkPolicy
from rldistill.students.features.maps import AnyFeatures, Raw, standardised_body_of


@dataclass(frozen=True)
class Mlp:
    """Dense layers of the sizes `hidden` on the flattened observation or other `features`, then a linear one."""

    hidden: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    features: AnyFeatures = Raw()

    def __post_init__(self) -> None:
        require_positive("hidden", self.hidden)
        activation(self.activation, "activation")

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """The student for `spec`, with new weights."""
        fixed, num_features = standardised_body_of(self, spec)
        layers, width = dense(num_features, self.hidden, activation(self.activation, "activation"))
        policy = NetworkPolicy(self, spec, nn.Sequential(*fixed, *layers), width)
        policy.normalizes_itself, policy.num_frozen_layers, policy.num_features = (
            self.features.normalizes_itself,
            len(fixed),
            num_features,
        )
        keep_scale(nn.Sequential(*layers, policy.output), self.activation)
        return policy
