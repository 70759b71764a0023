"""Linear function of the observation, or of fixed features of it."""

from __future__ import annotations

from rldistill.core.fields import validated_dataclass
from rldistill.core.spec import PolicySpec
from rldistill.policies.network import NetworkPolicy
from rldistill.students.features import AnyFeatures, Raw
from rldistill.students.mlp import network_on_features
from rldistill.students.student import Student


@validated_dataclass
class Linear(Student):
    """params = W phi(obs) + b, phi the flattened observation or other `features`, learned by gradient."""

    features: AnyFeatures = Raw()

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `spec`, with new weights."""
        return network_on_features(self, self.features, spec)
