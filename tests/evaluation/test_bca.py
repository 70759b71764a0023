"""Intervals against a textbook computation, with loops, of Efron's BCa from the same draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, t

from rldistill.evaluation import statistics
from rldistill.evaluation.statistics import (
    NUM_RESAMPLES,
    Estimate,
    Interval,
    Statistic,
    bootstrap,
    estimate,
    iqm,
    mean,
    median,
    normalized_gap,
    normalized_mean,
    normalized_score,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

Array = NDArray[np.float64]


def interval(statistic: Statistic, *samples: Array, seed: int = 0, distinct: int | None = None) -> Interval | None:
    return estimate(statistic, *samples, seed=seed, distinct=distinct).ci95


def skewed(runs: int, episodes: int, shift: float = 0.0, seed: int = 0) -> Array:
    """Return rounded returns, so that many draws equal the estimate."""
    rng = np.random.default_rng(seed)
    return np.round(rng.lognormal(0, 1, (1, episodes)) * rng.lognormal(0, 0.3, (runs, 1)) * 2) / 2 + shift


def acceleration(statistic: Statistic, samples: tuple[Array, ...]) -> float:
    episodes = samples[0].shape[1]
    omitted = range(episodes if episodes > 1 else 0)
    groups = [[statistic(*(np.delete(s, k, 1) for s in samples)) for k in omitted]]
    for i, sample in enumerate(samples):
        if len(sample) > 1:
            fewer = [
                [np.delete(s, run, 0) if i == j else s for j, s in enumerate(samples)] for run in range(len(sample))
            ]
            groups.append([statistic(*rest) for rest in fewer])
    influences = []
    for group in groups:
        defined = [float(value) for value in group if not np.isnan(value)]
        influences += [(np.mean(defined) - value) * (len(group) - 1) / len(group) for value in defined]
    spread = sum(i**2 for i in influences)
    return sum(i**3 for i in influences) / (6 * spread**1.5) if spread else 0.0


def half_width(sample: Array, episodes: int) -> float:
    """Return the quantile of Student's t, with the freedom of Welch and Satterthwaite, times the lacking spread."""
    runs, parts = len(sample), []  # variance of a mean, its degrees of freedom, and the share of it in the draws
    if episodes > 1:
        parts.append((np.var(sample.mean(0), ddof=1) / episodes, episodes - 1, (episodes - 1) / episodes))
    if runs > 1:
        parts.append((np.var(sample.mean(1), ddof=1) / runs, runs - 1, (runs - 1) / runs))
    drawn = sum(variance * share for variance, _, share in parts)
    if not drawn:
        return float(norm.ppf(0.975))
    total = sum(variance for variance, _, _ in parts)
    freedom = total**2 / sum(variance**2 / number for variance, number, _ in parts)
    return float(t.ppf(0.975, freedom) * math.sqrt(total / drawn))


def bca(statistic: Statistic, samples: tuple[Array, ...], seed: int, distinct: int | None) -> Array:
    draws, estimate = bootstrap(statistic, *samples, seed=seed, distinct=distinct), float(statistic(*samples))
    share = np.mean(draws < estimate) + np.mean(draws == estimate) / 2
    bias = norm.ppf(min(max(share, 1 / 2000), 1999 / 2000))
    episodes = samples[0].shape[1]
    a = acceleration(statistic, samples) * math.sqrt(episodes / (distinct or episodes))
    half = half_width(samples[0], distinct or episodes)
    levels = [norm.cdf(bias + z / (1 - a * z)) if a * z < 1 else 1.0 for z in (bias - half, bias + half)]
    return np.quantile(draws, levels)


def undefined_without_the_lowest(returns: Array) -> Array:
    """Return the mean, or NaN for seven of eight episodes without the lowest return."""
    lowest = skewed(3, 8).min()
    return np.where((returns.shape[-1] == 7) & (returns.min((-2, -1)) > lowest), np.nan, mean(returns))


def unlike_its_draws(sign: int) -> Statistic:
    return lambda returns: mean(returns) + sign * 100 * (returns.shape == (2, 6))


RATIO = skewed(3, 8), skewed(1, 8, 5, seed=1), skewed(2, 8, -4, seed=2)


@pytest.mark.parametrize(
    ("statistic", "samples", "distinct"),
    [
        (mean, (skewed(1, 9),), None),
        (mean, (skewed(1, 2),), None),
        (mean, (skewed(2, 12),), None),
        (mean, (skewed(4, 1, seed=5),), None),
        (mean, (skewed(12, 2, seed=3),), None),
        (mean, (skewed(3, 8),), 5),
        (mean, (skewed(12, 8),), 2),
        (mean, (skewed(12, 8),), 1),
        (mean, (skewed(1, 8),), 1),
        (iqm, (skewed(4, 7),), None),
        (median, (skewed(4, 7),), None),
        (lambda returns: returns.max((-2, -1)), (np.array([[0.0, 1.0, 5.0, 5.0]]),), None),
        (normalized_mean, RATIO, None),
        (normalized_mean, RATIO, 4),
        (undefined_without_the_lowest, (skewed(3, 8),), None),
        (unlike_its_draws(1), (skewed(2, 6),), None),
        (unlike_its_draws(-1), (skewed(2, 6),), None),
    ],
)
def test_interval_equals_the_textbook(statistic: Statistic, samples: tuple[Array, ...], distinct: int | None) -> None:
    expected = bca(statistic, samples, 3, distinct)
    assert interval(statistic, *samples, seed=3, distinct=distinct) == pytest.approx(expected, rel=1e-9)
    if statistic is normalized_mean:
        score = normalized_score(*samples, distinct=distinct)
        assert score is not None
        assert score.ci95 == pytest.approx(bca(statistic, samples, 0, distinct), rel=1e-9)


def test_interval_beyond_the_pole_of_the_correction_ends_at_the_extremes() -> None:
    # The range of columns ignores the runs, which make the half-width 18, and depends on the first column alone.
    returns = np.array([[1.0] + [0.0] * 29, [11.0] + [10.0] * 29])
    assert interval(lambda sample: np.ptp(sample.mean(-2), -1), returns) == (0, 1)
    assert interval(lambda sample: -np.ptp(sample.mean(-2), -1), returns) == (-1, 0)


@pytest.mark.parametrize(("num_undefined", "exists"), [(50, True), (51, False)])
def test_interval_needs_975_of_1000_draws(num_undefined: int, exists: bool) -> None:
    def statistic(returns: Array) -> Array:
        if len(returns) < NUM_RESAMPLES:
            return mean(returns)
        return np.where(np.arange(NUM_RESAMPLES) < num_undefined, np.nan, mean(returns))

    assert (interval(statistic, skewed(1, 9)) is not None) == exists


def test_draws_in_parts_are_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    data, sizes = skewed(3, 8), list[int]()

    def recorded_mean(returns: Array) -> Array:
        sizes.append(len(returns))
        return mean(returns)

    whole = statistics._acceleration(mean, (data,))
    for chunk, parts in ((24 * 300, [300] * 6 + [200]), (24 * 3, [3] * 666 + [2]), (5, [1] * NUM_RESAMPLES)):
        monkeypatch.setattr(statistics, "CHUNK_SIZE", chunk)
        sizes.clear()
        assert len(bootstrap(recorded_mean, data)) == NUM_RESAMPLES
        assert sizes == parts
        assert statistics._acceleration(mean, (data,)) == pytest.approx(whole)


@pytest.mark.parametrize(
    "statistic",
    [
        mean,
        median,
        iqm,
        optimality_gap,
        lambda returns: probability_of_improvement(returns, returns[..., ::-1, ::-1][..., :1, :]),
        lambda returns: performance_profile(returns, [0.5, 1.5, 3.0]),
        lambda returns: normalized_mean(returns, returns + 1, 0.5 * returns),
        lambda returns: normalized_gap(returns, returns + 1, 0.5 * returns),
    ],
)
def test_statistic_of_a_batch_is_that_of_each_sample(statistic: Statistic) -> None:
    batch = np.random.default_rng(1).lognormal(0, 1, (2, 5, 3, 7))
    expected = [[statistic(sample) for sample in row] for row in batch]
    np.testing.assert_allclose(statistic(batch), expected, rtol=1e-12)


def test_scores_by_hand() -> None:
    # Random play scores 2 and the teacher 12, so that 7 and 22 are 1/2 and 2, of which 1 counts.
    policy, teacher, random = np.array([[7.0, 22.0]]), np.array([[11.0, 13.0], [10.0, 14.0]]), np.array([[1.0, 3.0]])
    assert normalized_gap(policy, teacher, random) == pytest.approx(0.25)
    assert normalized_score(teacher, teacher, random) == Estimate(1, (1, 1))
    assert normalized_score(random, teacher, random) == Estimate(0, (0, 0))
