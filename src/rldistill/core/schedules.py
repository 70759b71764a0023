"""Schedules: values as functions of the progress of training, from 0 to 1."""

import math
from functools import partial
from typing import Annotated

from pydantic import AfterValidator

from rldistill.core.fields import OneOf, PositiveFloat, PositiveFraction, invalid, validated_dataclass


@validated_dataclass
class Constant:
    """The same value throughout."""

    value: float = 1.0

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`."""
        return self.value


@validated_dataclass
class Linear:
    """Linear interpolation from `start` to `end`, which progress `until` reaches."""

    start: float = 1.0
    end: float = 0.0
    until: PositiveFraction = 1.0

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`."""
        return self.start + (self.end - self.start) * min(progress / self.until, 1.0)


@validated_dataclass
class Exponential:
    """start * (end / start) ** progress, both positive."""

    start: PositiveFloat = 1.0
    end: PositiveFloat = 0.01

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`."""
        return float(self.start * (self.end / self.start) ** min(progress, 1.0))


@validated_dataclass
class Cosine:
    """Cosine annealing from `start` to `end` (Loshchilov 2017, arXiv 1608.03983)."""

    start: float = 1.0
    end: float = 0.0

    def __call__(self, progress: float) -> float:
        """Return the value at `progress`."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


SCHEDULES: dict[str, type] = {"constant": Constant, "linear": Linear, "exponential": Exponential, "cosine": Cosine}
Schedule = Annotated[
    Constant | Linear | Exponential | Cosine, OneOf("type", SCHEDULES, methods=("__call__",), number=Constant)
]


def _require_range(schedule: Schedule, low: float, high: float) -> Schedule:
    start, end = schedule(0.0), schedule(1.0)
    if not (low <= min(start, end) and max(start, end) <= high):
        limits = "at least 0" if math.isinf(high) else f"numbers from {low:g} to {high:g}"
        raise invalid(f"expected {limits}, found {start:g} at the start and {end:g} at the end")
    return schedule


def _require_positive(schedule: Schedule) -> Schedule:
    if not max(schedule(0.0), schedule(1.0)) > 0:
        raise invalid("expected more than 0 at the start or the end, found 0")
    return schedule


NonNegativeSchedule = Annotated[Schedule, AfterValidator(partial(_require_range, low=0.0, high=math.inf))]
PositiveSchedule = Annotated[NonNegativeSchedule, AfterValidator(_require_positive)]
FractionSchedule = Annotated[Schedule, AfterValidator(partial(_require_range, low=0.0, high=1.0))]
