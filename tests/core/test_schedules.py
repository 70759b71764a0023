"""Schedules, by hand."""

from __future__ import annotations

import pytest

from rldistill.core.errors import ConfigError
from rldistill.core.schedules import Constant, Cosine, Exponential, Linear, Schedule

PROGRESS = (0.0, 0.25, 0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(3.0), (3, 3, 3, 3, 3)),
        (Constant(), (1, 1, 1, 1, 1)),
        (Linear(), (1, 0.75, 0.5, 0, 0)),
        (Linear(start=2.0, end=4.0, until=0.5), (2, 3, 4, 4, 4)),
        (Exponential(), (1, 0.01**0.25, 0.1, 0.01, 0.01)),
        (Exponential(start=8.0, end=2.0), (8, 8 / 2**0.5, 4, 2, 2)),
        # 1 + cos(pi / 4) = 1.70711
        (Cosine(), (1, 0.853553, 0.5, 0, 0)),
        (Cosine(start=4.0, end=2.0), (4, 3.707107, 3, 2, 2)),
    ],
)
def test_values_by_hand(schedule: Schedule, values: tuple[float, ...]) -> None:
    assert [schedule(progress) for progress in PROGRESS] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_exponential_needs_positive_values(start: float, end: float) -> None:
    with pytest.raises(ConfigError, match=r"Exponential\..*: found .*, expected more than 0"):
        Exponential(start, end)
