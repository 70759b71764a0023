"""A linear function that is solved for instead of descended to, on observations or on random features of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rldistill.errors import ConfigError
from rldistill.students.network import Flat, NetworkPolicy, flat_width, require_positive
from rldistill.types import PolicySpec


@dataclass(frozen=True)
class Ridge:
    """Least squares with a penalty: min_W |Phi W - Y|^2 / N + l2 |W|^2, in one pass over the data and one solve.

    Y are the teacher's Q values; of a `categorical` teacher its logits, less their mean over actions; of a continuous
    one its most likely action. `features` are the standardised observations, or random Fourier features of them,
    sqrt(2 / D) cos(w . x / bandwidth + b), w normal and b uniform (Rahimi 2007).

    Attributes:
        l2: the penalty; the constant is not penalised.
        features: `raw` or `fourier`.
        num_features: D, of Fourier features.
        bandwidth: of the Gaussian kernel that they stand for, over the root of the number of entries.
    """

    l2: float = 1e-4
    features: Literal["raw", "fourier"] = "raw"
    num_features: int = 1024
    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        require_positive("num_features", [self.num_features])
        for name in ("l2", "bandwidth"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected a positive number, found {getattr(self, name)}")
        if self.features not in ("raw", "fourier"):
            raise ConfigError(f"features: expected raw or fourier, found {self.features!r}")

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """The student for `spec`, with new random features and weights of zero."""
        width = flat_width(spec)
        layers: list[nn.Module] = [Flat()]
        if self.features == "fourier":
            layers.append(Fourier(width, self.num_features, self.bandwidth * math.sqrt(width)))
            width = self.num_features
        policy = NetworkPolicy(self, spec, nn.Sequential(*layers), width)
        nn.init.zeros_(policy.output.weight)  # type: ignore[arg-type]
        nn.init.zeros_(policy.output.bias)  # type: ignore[arg-type]
        return policy


class Fourier(nn.Module):
    """sqrt(2 / D) cos(x W / scale + b), W and b random and fixed."""

    def __init__(self, width: int, num_features: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(num_features, width) / scale)
        self.register_buffer("bias", 2 * math.pi * torch.rand(num_features))
        self.scale = math.sqrt(2 / num_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * nn.functional.linear(x, self.weight, self.bias).cos()  # type: ignore[arg-type]
