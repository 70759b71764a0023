"""Estimates over runs and episodes, with intervals (Agarwal 2021, arXiv 2108.13264). Arrays are `[runs, episodes]`.

A run is one training seed, and column k the episode with the k-th seed, the same for all runs and policies. With tasks
as columns, the estimates are those of rliable. All functions are pure. Statistics also take a batch of resampled
samples: `[..., runs, episodes]` gives `[...]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

NUM_RESAMPLES = 2_000
CHUNK_SIZE = 2_000_000
"""Largest number of values that are resampled at a time."""
Returns = NDArray[np.floating[Any]]
Estimate = NDArray[np.float64]
Statistic = Callable[..., Estimate]
Interval = tuple[float, float]


def mean(returns: Returns) -> Estimate:
    """Return the mean over all runs and episodes."""
    return np.asarray(returns.mean((-2, -1)))


def median(returns: Returns) -> Estimate:
    """Return the median, over episode seeds (or tasks), of the mean over runs."""
    return np.asarray(np.median(returns.mean(-2), -1))


def iqm(returns: Returns) -> Estimate:
    """Return the interquartile mean: the mean without the lowest and the highest quarter (floor(n / 4) each)."""
    ordered = np.sort(returns.reshape(*returns.shape[:-2], -1), axis=-1)
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(-1))


def optimality_gap(scores: Returns, target: float = 1.0) -> Estimate:
    """Return the mean shortfall of scores from `target`; higher scores count as `target`."""
    return np.asarray(target - np.minimum(scores, target).mean((-2, -1)))


def probability_of_improvement(ours: Returns, theirs: Returns) -> Estimate:
    """Return P(ours scores more than theirs in the same column), averaged over runs and columns; ties count half."""
    a, b = ours[..., :, None, :], theirs[..., None, :, :]
    return np.asarray(((a > b) + 0.5 * (a == b)).mean((-3, -2, -1)))


def performance_profile(scores: Returns, thresholds: Sequence[float] | Returns) -> Estimate:
    """Return the share of scores above each threshold, `[..., thresholds]`."""
    return np.stack([(scores > threshold).mean((-2, -1)) for threshold in thresholds], -1)


def normalized_mean(policy: Returns, teacher: Returns, random: Returns) -> Estimate:
    """Return (policy - random) / (teacher - random) of the means; NaN if the teacher is no better than random."""
    return np.asarray((mean(policy) - mean(random)) / _positive(mean(teacher) - mean(random)))


def normalized_gap(policy: Returns, teacher: Returns, random: Returns) -> Estimate:
    """Return the optimality gap of scores that are 0 at random's mean and 1 at the teacher's, or NaN likewise."""
    low = mean(random)[..., None, None]
    return optimality_gap((policy - low) / _positive(mean(teacher)[..., None, None] - low))


def _positive(span: Estimate) -> Estimate:
    return np.where(span > 0, span, np.nan)


def bootstrap(statistic: Statistic, *samples: Returns, seed: int = 0, distinct: int | None = None) -> Estimate:
    """Return `statistic` of samples with resampled runs and episodes, `[NUM_RESAMPLES, ...]`.

    The runs of each sample are drawn separately, but one draw of episodes serves all samples, because episode k has the
    same seed everywhere (the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111: with several runs a little wide, never
    too narrow). If only `distinct` episodes differ, only that many are drawn, since repetitions carry no information.
    """

    def draw(count: int, columns: int, rng: np.random.Generator) -> list[Returns]:
        column = rng.integers(0, columns, (count, 1, distinct or columns))
        return [sample[rng.integers(0, len(sample), (count, len(sample), 1)), column] for sample in samples]

    return _resampled(statistic, samples, draw, seed)


def bootstrap_within_tasks(statistic: Statistic, *scores: Returns, seed: int = 0) -> Estimate:
    """Return `statistic` of scores `[runs, tasks]` with runs resampled within each task: rliable's bootstrap."""

    def draw(count: int, tasks: int, rng: np.random.Generator) -> list[Returns]:
        return [score[rng.integers(0, len(score), (count, *score.shape)), np.arange(tasks)] for score in scores]

    return _resampled(statistic, scores, draw, seed)


def _resampled(
    statistic: Statistic,
    samples: Sequence[Returns],
    draw: Callable[[int, int, np.random.Generator], list[Returns]],
    seed: int,
) -> Estimate:
    columns = sorted({int(sample.shape[1]) for sample in samples})
    if len(columns) > 1:
        raise ValueError(f"expected the same number of columns in all samples, found {columns}")
    rng, batch = np.random.default_rng(seed), _batch_size(samples)
    counts = [min(batch, NUM_RESAMPLES - done) for done in range(0, NUM_RESAMPLES, batch)]
    return np.concatenate([statistic(*draw(count, columns[0], rng)) for count in counts])


def _batch_size(samples: Sequence[Returns]) -> int:
    return max(1, CHUNK_SIZE // max(sample.size for sample in samples))


def percentile_interval(draws: Estimate) -> Interval:
    """Return the middle 95% of resampled estimates, the interval of rliable."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def interval(statistic: Statistic, *samples: Returns, seed: int = 0, distinct: int | None = None) -> Interval | None:
    """Return the 95% interval of `statistic`, from `bootstrap`, corrected for bias and skewness (BCa, Efron 1987).

    A bootstrap of a small sample is too narrow: its variance lacks a factor n / (n - 1), and its quantiles are normal
    instead of Student's. As in Hesterberg (2015, arXiv 1411.5279), wider quantiles make up for both.
    It is None if the statistic is NaN, or in over 2.5% of the resamples: a ratio has no finite interval if its
    denominator may be 0 (Fieller 1954), and an interval of the other resamples would be too narrow.
    """
    estimate = float(statistic(*samples))
    draws = bootstrap(statistic, *samples, seed=seed, distinct=distinct)
    valid = draws[~np.isnan(draws)]
    if math.isnan(estimate) or len(valid) < 0.975 * NUM_RESAMPLES:
        return None
    below = ((valid < estimate).mean() + (valid <= estimate).mean()) / 2
    bias = float(norm.ppf(np.clip(below, 1 / NUM_RESAMPLES, 1 - 1 / NUM_RESAMPLES)))
    episodes = samples[0].shape[1]
    acceleration = _acceleration(statistic, samples) * math.sqrt(episodes / (distinct or episodes))
    half = _half_width(samples[0], distinct or episodes)
    ends = []
    for z in (bias - half, bias + half):
        bend = 1 - acceleration * z
        ends.append(float(norm.cdf(bias + z / bend)) if bend > 0 else float(z > 0))
    low, high = np.quantile(valid, ends)
    return float(low), float(high)


def mean_interval(returns: Returns, distinct: int | None = None) -> Interval:
    """Return the 95% interval of the mean."""
    found = interval(mean, returns, distinct=distinct)
    assert found is not None
    return found


def normalized_score(policy: Returns, teacher: Returns, random: Returns) -> float | None:
    """Return `normalized_mean`, or None if the teacher is no better than random."""
    score = float(normalized_mean(policy, teacher, random))
    return None if math.isnan(score) else score


def normalized_interval(
    policy: Returns, teacher: Returns, random: Returns, seed: int = 0, distinct: int | None = None
) -> Interval | None:
    """Return the 95% interval of the normalized score, with all three resampled; None as in `interval`.

    The teacher's is exactly 1 and random play's exactly 0.
    """
    if normalized_score(policy, teacher, random) is None:
        return None
    if policy is teacher or policy is random:
        return (1.0, 1.0) if policy is teacher else (0.0, 0.0)
    return interval(normalized_mean, policy, teacher, random, seed=seed, distinct=distinct)


def _acceleration(statistic: Statistic, samples: Sequence[Returns]) -> float:
    """Return a sixth of the skewness of the estimate, by the jackknife over episodes and over runs."""
    influences = [np.zeros(1)]
    for values in _jackknife(statistic, samples):
        # A ratio may be undefined without some episode; the influence of that episode then counts as 0.
        if len(defined := values[~np.isnan(values)]):
            influences.append((defined.mean() - defined) * (1 - 1 / len(values)))
    influence = np.concatenate(influences)
    spread = float((influence**2).sum())
    return float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _jackknife(statistic: Statistic, samples: Sequence[Returns]) -> Iterator[Estimate]:
    """Yield the statistic without each episode, and without each run of each sample."""
    episodes, batch, parts = samples[0].shape[1], _batch_size(samples), []
    for first in range(0, episodes, batch) if episodes > 1 else ():
        omitted = np.arange(first, min(first + batch, episodes))[:, None]
        kept = np.arange(episodes - 1) + (np.arange(episodes - 1) >= omitted)
        parts.append(statistic(*(np.moveaxis(sample[:, kept], 0, 1) for sample in samples)))
    if parts:
        yield np.concatenate(parts)
    for number, sample in enumerate(samples):
        if len(sample) > 1:
            fewer = (np.delete(sample, run, 0) for run in range(len(sample)))
            yield np.array([float(statistic(*samples[:number], part, *samples[number + 1 :])) for part in fewer])


def _half_width(sample: Returns, episodes: int) -> float:
    """Return the half-width of an interval in standard deviations of the bootstrap, from both variance components."""
    runs = len(sample)
    within = float(sample.mean(0).var(ddof=1)) / episodes if episodes > 1 and sample.shape[1] > 1 else 0.0
    between = float(sample.mean(1).var(ddof=1)) / runs if runs > 1 else 0.0
    drawn = within * (1 - 1 / episodes) + between * (1 - 1 / runs)
    if drawn == 0:
        return float(norm.ppf(0.975))
    freedom = (within + between) ** 2 / (within**2 / max(1, episodes - 1) + between**2 / max(1, runs - 1))
    return float(student_t.ppf(0.975, freedom)) * math.sqrt((within + between) / drawn)
