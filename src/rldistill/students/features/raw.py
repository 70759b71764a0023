"""The observation itself as features."""

from __future__ import annotations

from torch import nn

from rldistill.core.fields import validated_dataclass
from rldistill.core.spec import PolicySpec
from rldistill.policies.encoding import flat_width
from rldistill.policies.layers import Flat
from rldistill.students.features.features import Features, Standardizer


@validated_dataclass
class Raw(Features):
    """The flattened observation; pixels are standardized with one number for all."""

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the layers and the number of features."""
        return nn.Sequential(Flat()), flat_width(spec)


@validated_dataclass
class Standardized(Features):
    """The flattened observation, each entry standardized over the data and clipped to 20 standard deviations.

    For pixels this weighs a rare flicker as much as a paddle; other observations are standardized for every student.
    """

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the layers and the number of features."""
        width = flat_width(spec)
        return nn.Sequential(Flat(), Standardizer(width)), width
