"""What returns say of a policy, as it stands in `evaluation.json`, and what should be doubted of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rldistill.evaluation.statistics import (
    Estimate,
    Interval,
    Returns,
    Statistic,
    bootstrap,
    interval,
    iqm,
    mean,
    median,
    normalised_gap,
    normalised_interval,
    normalised_score,
    performance_profile,
    probability_of_improvement,
)

FEW_EPISODES, FEW_SEEDS = 10, 3
THRESHOLDS = 41


def estimates(
    own: Returns, teacher: Returns, random: Returns, thresholds: Returns, distinct: Mapping[str, int]
) -> dict[str, Any]:
    """All estimates of a policy with their 95% intervals; arrays are `[runs, episodes]`.

    `distinct` says how many episodes differ: of its `own`, and the least of those that are compared, `all`.

    The optimality gap is of the normalised score, and null as that is. The probability of improvement is over the
    teacher, of episodes with the same seed. The profile is the share of episodes that return more than each threshold.
    """

    def known(statistic: Statistic, *samples: Returns) -> list[float] | None:
        return _ends(interval(statistic, *samples, distinct=distinct["own" if len(samples) == 1 else "all"]))

    gap = float(normalised_gap(own, teacher, random))
    return {
        "mean": float(mean(own)),
        "ci95": known(mean, own),
        "median": float(median(own)),
        "median_ci95": known(median, own),
        "iqm": float(iqm(own)),
        "iqm_ci95": known(iqm, own),
        "normalised": normalised_score(own, teacher, random),
        "normalised_ci95": _ends(normalised_interval(own, teacher, random, distinct=distinct["all"])),
        "optimality_gap": None if np.isnan(gap) else gap,
        "optimality_gap_ci95": known(normalised_gap, own, teacher, random),
        "probability_of_improvement": None
        if own is teacher
        else {
            "estimate": float(probability_of_improvement(own, teacher)),
            "ci95": known(probability_of_improvement, own, teacher),
        },
        "profile": _profile(own, thresholds, distinct["own"]),
    }


def thresholds(everyone: Mapping[str, Returns]) -> Returns:
    """The returns at which profiles are drawn, from the lowest to the highest of all policies.

    As many of all episodes lie between any two of them, so that one that ends far away from all others does not matter.
    """
    found = np.concatenate([returns.ravel() for returns in everyone.values()])
    return np.unique(np.quantile(found, np.linspace(0, 1, THRESHOLDS), method="nearest"))


def _profile(own: Returns, at: Returns, distinct: int) -> dict[str, list[float]]:
    def profile(returns: Returns) -> Estimate:
        return performance_profile(returns, at)

    low, high = np.percentile(bootstrap(profile, own, distinct=distinct), [2.5, 97.5], axis=0)
    return {"share": profile(own).tolist(), "low": low.tolist(), "high": high.tolist()}


def _ends(found: Interval | None) -> list[float] | None:
    return None if found is None else list(found)


def doubts(policies: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """What makes an evaluation less than it seems: the `name` and `text` of each doubt."""
    episodes = {name: entry["distinct_episodes"] for name, entry in policies.items()}
    seeds = {name: len(entry["runs"]) for name, entry in policies.items() if entry["kind"] == "student"}
    few = {
        "few-episodes": (episodes, FEW_EPISODES, "distinct episodes say little of how good it is"),
        "few-seeds": (seeds, FEW_SEEDS, "training seeds do not tell the recipe from luck"),
    }
    return [
        {"name": name, "text": f"fewer than {least} {what}: " + ", ".join(f"{who} has {n}" for who, n in short.items())}
        for name, (counts, least, what) in few.items()
        if (short := {who: n for who, n in counts.items() if n < least})
    ]
