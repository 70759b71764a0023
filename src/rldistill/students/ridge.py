"""A linear function that is solved for instead of descended to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rldistill.core.errors import ConfigError
from rldistill.core.spec import PolicySpec
from rldistill.policies.network import NetworkPolicy
from rldistill.students.features.maps import AnyFeatures, Raw, linear_in_features


@dataclass(frozen=True)
class Ridge:
    """Least squares with a penalty: min_W |Phi W - Y|^2 / N + l2 |W|^2, in one pass over the data and one solve.

    Y are the teacher's Q values; of a `categorical` teacher its logits, less their mean over actions; of a continuous
    one its most likely action. With the loss `bellman_target` it is fitted Q with the teacher's bootstrap: for each
    action, over the transitions in which it was taken, Y = r + gamma max_a' Q_teacher(s', a').

    Attributes:
        l2: the penalty; the constant is not penalised.
        features: Phi.
    """

    l2: float = 1e-4
    features: AnyFeatures = Raw()

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise ConfigError(f"l2: expected a positive number, found {self.l2}")

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """The student for `spec`, with new random features and weights of zero."""
        policy = linear_in_features(self, spec)
        nn.init.zeros_(policy.output.weight)  # type: ignore[arg-type]
        nn.init.zeros_(policy.output.bias)  # type: ignore[arg-type]
        return policy
