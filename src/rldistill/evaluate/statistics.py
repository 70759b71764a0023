"""Estimates over runs and episodes, with intervals (Agarwal 2021, arXiv 2108.13264). Arrays are `[runs, episodes]`.

A run is one training seed. All functions are pure: the same numbers and seed give the same estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPETITIONS = 2_000
Returns = NDArray[np.floating[Any]]
Interval = tuple[float, float]


def mean(returns: Returns) -> float:
    """The mean over all runs and episodes."""
    return float(returns.mean())


def iqm(returns: Returns) -> float:
    """Interquartile mean: the mean of what is left without the lowest and the highest quarter (floor(n / 4) each)."""
    ordered = np.sort(returns, axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def bootstrap_means(returns: Returns, seed: int = 0, distinct: int | None = None) -> NDArray[np.float64]:
    """Means `[REPETITIONS]` of resampled data: runs are drawn with replacement, then episodes within each run drawn.

    A single run is drawn every time, so that only its episodes vary. Where only `distinct` episodes of a run differ
    from each other, so many are drawn, since the others tell nothing new.
    """
    rng = np.random.default_rng(seed)
    runs, episodes = returns.shape
    run = rng.integers(0, runs, (REPETITIONS, runs, 1))
    episode = rng.integers(0, episodes, (REPETITIONS, runs, distinct or episodes))
    means: NDArray[np.float64] = returns[run, episode].mean((1, 2))
    return means


def stratified_bootstrap(returns: Returns, seed: int = 0, distinct: int | None = None) -> Interval:
    """The 95% percentile interval of the mean."""
    return _middle95(bootstrap_means(returns, seed, distinct))


def normalised_score(policy: Returns, teacher: Returns, random: Returns) -> float | None:
    """(policy - random) / (teacher - random) of the means; None where the teacher is no better than random."""
    span = mean(teacher) - mean(random)
    return (mean(policy) - mean(random)) / span if span > 0 else None


def normalised_interval(
    policy: Returns,
    teacher: Returns,
    random: Returns,
    seed: int = 0,
    distinct: Sequence[int | None] = (None, None, None),
) -> Interval | None:
    """The 95% interval of the normalised score, all three resampled.

    The teacher itself has 1 and the random policy 0, exactly: the same draws stand on both sides.

    None where the score is, and where the teacher loses to random in over 2.5% of the draws: the ratio has no finite
    interval when its denominator may be 0 (Fieller 1954), and one from the other draws would be too narrow.
    """
    if normalised_score(policy, teacher, random) is None:
        return None
    if policy is teacher or policy is random:
        return (1.0, 1.0) if policy is teacher else (0.0, 0.0)
    policy_mean, teacher_mean, random_mean = (
        bootstrap_means(returns, seed + offset, count)
        for offset, (returns, count) in enumerate(zip((policy, teacher, random), distinct, strict=True))
    )
    span = teacher_mean - random_mean
    valid = span > 0
    if valid.mean() < 0.975:
        return None
    return _middle95((policy_mean - random_mean)[valid] / span[valid])


def _middle95(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
