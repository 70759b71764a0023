"""Sample efficiency: normalized score against environment steps, the steps of the teacher's data included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rldistill.evaluation.records import Efficiency

Curve = Sequence[tuple[int, float]]
"""Environment steps and mean returns, in ascending order of steps."""

LEAD_PERCENTAGES = (50, 75, 90, 95)
"""Percentages of the teacher's lead over random play."""


def efficiency(curves: Mapping[str, Curve], teacher: float, random: float) -> dict[str, Efficiency]:
    """Return each policy's normalized score against its steps, and the first step at each percentage (None: never).

    Args:
        curves: mean returns by policy; a policy that was evaluated once has one point.
        teacher: mean return of the teacher.
        random: mean return of random play.
    """
    if not teacher > random:
        return {}
    found = {}
    for name, curve in curves.items():
        scores = [(float(steps), (value - random) / (teacher - random)) for steps, value in curve]
        reached = {
            str(percentage): next((int(steps) for steps, score in scores if score >= percentage / 100), None)
            for percentage in LEAD_PERCENTAGES
        }
        found[name] = Efficiency(curve=scores, to=reached)
    return found
