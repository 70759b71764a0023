"""A linear function of the flattened observation."""

from __future__ import annotations

from dataclasses import dataclass

from rldistill.students.network import Flat, NetworkPolicy, flat_width
from rldistill.types import PolicySpec


@dataclass(frozen=True)
class Linear:
    """params = W obs + b, the observation flattened."""

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """The student for `spec`, with new weights."""
        return NetworkPolicy(self, spec, Flat(), flat_width(spec))
