"""Sample efficiency: what was reached after how many environment steps, the teacher's data counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Curve = Sequence[tuple[int, float]]
"""Environment steps and mean returns, in the order of the steps."""

SHARES = (50, 75, 90, 95)
"""Per cent of the teacher's lead over random play."""


def efficiency(curves: Mapping[str, Curve], teacher: float, random: float) -> dict[str, dict[str, Any]]:
    """Each policy's normalised score against its steps, and the steps at which it first had 50, 75, 90 and 95%.

    Normalised with (return - random) / (teacher - random), of mean returns. Null is what a policy never reached.

    Args:
        curves: by policy; a policy that was evaluated once has one point.
        teacher: mean return of the teacher.
        random: mean return of random play.
    """
    if not teacher > random:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, curve in curves.items():
        scores = [(steps, (value - random) / (teacher - random)) for steps, value in curve]
        reached = {
            str(share): next((steps for steps, score in scores if score >= share / 100), None) for share in SHARES
        }
        found[name] = {"curve": [[steps, score] for steps, score in scores], "to": reached}
    return found
