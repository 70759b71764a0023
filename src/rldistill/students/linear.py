"""A linear function of the flattened observation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from rldistill.students.network import NetworkPolicy
from rldistill.types import PolicySpec


@dataclass(frozen=True)
class Linear:
    """params = W obs + b, the observation flattened."""

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """The student for `spec`, with new weights."""
        return NetworkPolicy(self, spec, nn.Flatten(), math.prod(spec.obs_shape))
