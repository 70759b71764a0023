"""Estimates over runs and episodes, with intervals (Agarwal 2021, arXiv 2108.13264). Arrays are `[runs, episodes]`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

REPETITIONS = 2_000
Returns = NDArray[np.floating[Any]]


def iqm(returns: Returns) -> float:
    """Interquartile mean: the mean of what is left without the lowest and the highest quarter (floor(n / 4) each)."""
    ordered = np.sort(returns, axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def bootstrap_means(returns: Returns, seed: int = 0, repetitions: int = REPETITIONS) -> NDArray[np.float64]:
    """Means of resampled data: runs are drawn with replacement, then episodes within each run drawn."""
    rng = np.random.default_rng(seed)
    runs, episodes = returns.shape
    run = rng.integers(0, runs, (repetitions, runs, 1))
    episode = rng.integers(0, episodes, (repetitions, runs, episodes))
    means: NDArray[np.float64] = returns[run, episode].mean((1, 2))
    return means


def stratified_bootstrap(returns: Returns, seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of the mean."""
    low, high = np.percentile(bootstrap_means(returns, seed), [2.5, 97.5])
    return float(low), float(high)


def normalised_score(policy: Returns, teacher: Returns, random: Returns) -> float | None:
    """(policy - random) / (teacher - random) of the means; None where the teacher is no better than random."""
    span = float(teacher.mean() - random.mean())
    return float(policy.mean() - random.mean()) / span if span > 0 else None


def normalised_interval(
    policy: Returns, teacher: Returns, random: Returns, seed: int = 0
) -> tuple[float, float] | None:
    """The 95% interval of the normalised score, all three resampled; None where the score is.

    The teacher itself has 1 and the random policy 0, exactly: the same draws stand on both sides.
    """
    if normalised_score(policy, teacher, random) is None:
        return None
    if policy is teacher or policy is random:
        return (1.0, 1.0) if policy is teacher else (0.0, 0.0)
    policy_mean, teacher_mean, random_mean = (
        bootstrap_means(returns, seed + offset) for offset, returns in enumerate((policy, teacher, random))
    )
    span = teacher_mean - random_mean
    scores = (policy_mean - random_mean)[span > 0] / span[span > 0]
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)
