"""Schedules: how far along (0 at the start, 1 at the end) -> a weight, a rate, a beta."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rldistill.core.errors import ConfigError


@dataclass(frozen=True)
class Constant:
    """`value`, always."""

    value: float = 1.0

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """A straight line from `start` to `end`, reached at `until`."""

    start: float = 1.0
    end: float = 0.0
    until: float = 1.0

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * min(progress / self.until, 1.0)


@dataclass(frozen=True)
class Exponential:
    """`start * (end / start) ** progress`; both positive."""

    start: float = 1.0
    end: float = 0.01

    def __post_init__(self) -> None:
        if self.start <= 0 or self.end <= 0:
            raise ConfigError(f"exponential: expected start and end above 0, found {self.start} and {self.end}")

    def __call__(self, progress: float) -> float:
        return float(self.start * (self.end / self.start) ** min(progress, 1.0))


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` down to `end` (Loshchilov 2017, arXiv 1608.03983)."""

    start: float = 1.0
    end: float = 0.0

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


Schedule = Constant | Linear | Exponential | Cosine
