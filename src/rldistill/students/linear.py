"""A linear function of the observation, or of fixed features of it."""

from __future__ import annotations

from dataclasses import dataclass

from rldistill.core.spec import PolicySpec
from rldistill.policies.network import NetworkPolicy
from rldistill.students.features.maps import AnyFeatures, Raw, linear_in_features


@dataclass(frozen=True)
class Linear:
    """params = W phi(obs) + b, phi the flattened observation or other `features`, learned by gradient."""

    features: AnyFeatures = Raw()

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """The student for `spec`, with new weights."""
        return linear_in_features(self, spec)
