"""Schedules: functions of the progress of training, from 0 to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rldistill.core.errors import ConfigError


@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: float = 1.0

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """Linear interpolation from `start` to `end`, which progress `until` reaches."""

    start: float = 1.0
    end: float = 0.0
    until: float = 1.0

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`."""
        return self.start + (self.end - self.start) * min(progress / self.until, 1.0)


@dataclass(frozen=True)
class Exponential:
    """start * (end / start) ** progress, both positive."""

    start: float = 1.0
    end: float = 0.01

    def __post_init__(self) -> None:
        if self.start <= 0 or self.end <= 0:
            raise ConfigError(f"exponential: start and end must be positive, found {self.start} and {self.end}")

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`."""
        return float(self.start * (self.end / self.start) ** min(progress, 1.0))


@dataclass(frozen=True)
class Cosine:
    """Cosine annealing from `start` to `end` (Loshchilov 2017, arXiv 1608.03983)."""

    start: float = 1.0
    end: float = 0.0

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


Schedule = Constant | Linear | Exponential | Cosine
