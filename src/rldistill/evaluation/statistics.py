"""Estimates over runs and episodes, with intervals (Agarwal 2021, arXiv 2108.13264). Arrays are `[runs, episodes]`.

A run is one training seed, and column k the episode with the k-th seed, the same for all runs and policies. With tasks
as columns, the estimates are those of rliable. All functions are pure. Statistics also take a batch of resampled
samples: `[..., runs, episodes]` gives `[...]`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

NUM_RESAMPLES = 2_000
CHUNK_SIZE = 2_000_000
"""Largest number of values that are resampled at a time."""
Returns = NDArray[np.floating[Any]]
Values = NDArray[np.float64]
Statistic = Callable[..., Values]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """Estimate with its 95% interval; None if it has no finite one."""

    value: float
    ci95: Interval | None


def mean(returns: Returns) -> Values:
    """Return the mean over all runs and episodes."""
    return np.asarray(returns.mean((-2, -1)))


def mean_of_reported(values: Returns) -> Values:
    """Return the mean over all runs and episodes with a value, and NaN without any."""
    reported = ~np.isnan(values)
    return np.asarray(np.where(reported, values, 0.0).sum((-2, -1)) / _positive(reported.sum((-2, -1))))


def median(returns: Returns) -> Values:
    """Return the median, over episode seeds (or tasks), of the mean over runs."""
    return np.asarray(np.median(returns.mean(-2), -1))


def iqm(returns: Returns) -> Values:
    """Return the interquartile mean: the mean without the lowest and the highest quarter (floor(n / 4) each)."""
    ordered = np.sort(returns.reshape(*returns.shape[:-2], -1), axis=-1)
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(-1))


def optimality_gap(scores: Returns, target: float = 1.0) -> Values:
    """Return the mean shortfall of scores from `target`; higher scores count as `target`."""
    return np.asarray(target - np.minimum(scores, target).mean((-2, -1)))


def probability_of_improvement(ours: Returns, theirs: Returns) -> Values:
    """Return P(ours scores more than theirs in the same column), averaged over runs and columns; ties count half."""
    a, b = ours[..., :, None, :], theirs[..., None, :, :]
    return np.asarray(((a > b) + 0.5 * (a == b)).mean((-3, -2, -1)))


def performance_profile(scores: Returns, thresholds: Sequence[float] | Returns) -> Values:
    """Return the share of scores above each threshold, `[..., thresholds]`."""
    return np.stack([(scores > threshold).mean((-2, -1)) for threshold in thresholds], -1)


def normalized_mean(policy: Returns, teacher: Returns, random: Returns) -> Values:
    """Return (policy - random) / (teacher - random) of the means; NaN if the teacher is no better than random."""
    return np.asarray((mean(policy) - mean(random)) / _positive(mean(teacher) - mean(random)))


def normalized_gap(policy: Returns, teacher: Returns, random: Returns) -> Values:
    """Return the optimality gap of scores that are 0 at random's mean and 1 at the teacher's, or NaN likewise."""
    low = mean(random)[..., None, None]
    return optimality_gap((policy - low) / _positive(mean(teacher)[..., None, None] - low))


def _positive(span: Values) -> Values:
    return np.where(span > 0, span, np.nan)


def bootstrap(statistic: Statistic, *samples: Returns, seed: int = 0, distinct: int | None = None) -> Values:
    """Return `statistic` of samples with resampled runs and episodes, `[NUM_RESAMPLES, ...]`.

    The runs of each sample are drawn separately, but one draw of episodes serves all samples, because episode k has the
    same seed everywhere (the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111: with several runs a little wide, never
    too narrow). If only `distinct` episodes differ, only that many are drawn, since repetitions carry no information.
    """
    columns = sorted({int(sample.shape[1]) for sample in samples})
    if len(columns) > 1:
        raise ValueError(f"expected the same number of columns in all samples, found {columns}")
    rng, batch, draws = np.random.default_rng(seed), max(1, CHUNK_SIZE // max(sample.size for sample in samples)), []
    for done in range(0, NUM_RESAMPLES, batch):
        count = min(batch, NUM_RESAMPLES - done)
        column = rng.integers(0, columns[0], (count, 1, distinct or columns[0]))
        runs = (rng.integers(0, len(sample), (count, len(sample), 1)) for sample in samples)
        draws.append(statistic(*(sample[run, column] for sample, run in zip(samples, runs, strict=True))))
    return np.concatenate(draws)


def estimate(statistic: Statistic, *samples: Returns, seed: int = 0, distinct: int | None = None) -> Estimate:
    """Return `statistic` with its 95% interval, from `bootstrap`, corrected for bias and skewness (BCa, Efron 1987).

    A bootstrap of a small sample is too narrow: its variance lacks a factor n / (n - 1), and its quantiles are normal
    instead of Student's. As in Hesterberg (2015, arXiv 1411.5279), wider quantiles make up for both.
    There is no interval if the statistic is NaN, or over 2.5% of the resamples are: a ratio has no finite interval if
    its denominator may be 0 (Fieller 1954), and an interval of the other resamples would be too narrow.
    """
    value, draws = float(statistic(*samples)), bootstrap(statistic, *samples, seed=seed, distinct=distinct)
    valid = draws[~np.isnan(draws)]
    if math.isnan(value) or len(valid) < 0.975 * NUM_RESAMPLES:
        return Estimate(value, None)
    below = ((valid < value).mean() + (valid <= value).mean()) / 2
    bias = float(ndtri(np.clip(below, 1 / NUM_RESAMPLES, 1 - 1 / NUM_RESAMPLES)))
    episodes = samples[0].shape[1]
    acceleration = _acceleration(statistic, samples) * math.sqrt(episodes / (distinct or episodes))
    half = _half_width(samples[0], distinct or episodes)
    ends = []
    for z in (bias - half, bias + half):
        bend = 1 - acceleration * z
        ends.append(float(ndtr(bias + z / bend)) if bend > 0 else float(z > 0))
    low, high = np.quantile(valid, ends)
    return Estimate(value, (float(low), float(high)))


def normalized_score(
    policy: Returns, teacher: Returns, random: Returns, distinct: int | None = None
) -> Estimate | None:
    """Return `normalized_mean` with its interval, with all three resampled; None if the teacher does not beat random.

    The teacher's is exactly 1 and random play's exactly 0.
    """
    if not mean(teacher) > mean(random):
        return None
    if policy is teacher or policy is random:
        exact = float(policy is teacher)
        return Estimate(exact, (exact, exact))
    return estimate(normalized_mean, policy, teacher, random, distinct=distinct)


def _acceleration(statistic: Statistic, samples: Sequence[Returns]) -> float:
    """Return a sixth of the skewness of the estimate, by the jackknife over episodes and over the runs of a sample."""
    episodes, influences = samples[0].shape[1], [np.zeros(1)]
    omissions: list[Iterable[Sequence[Returns]]] = []
    if episodes > 1:
        omissions.append([np.delete(sample, k, 1) for sample in samples] for k in range(episodes))
    for number, sample in enumerate(samples):
        before, after = samples[:number], samples[number + 1 :]
        if len(sample) > 1:
            omissions.append([(*before, np.delete(sample, run, 0), *after) for run in range(len(sample))])
    for parts in omissions:
        values = np.array([float(statistic(*part)) for part in parts])
        # A ratio may be undefined without some episode; the influence of that episode then counts as 0.
        if len(defined := values[~np.isnan(values)]):
            influences.append((defined.mean() - defined) * (1 - 1 / len(values)))
    influence = np.concatenate(influences)
    spread = float((influence**2).sum())
    return float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _half_width(sample: Returns, episodes: int) -> float:
    """Return the half-width of an interval in standard deviations of the bootstrap, from both variance components."""
    runs = len(sample)
    within = float(np.nanmean(sample, 0).var(ddof=1)) / episodes if episodes > 1 and sample.shape[1] > 1 else 0.0
    between = float(np.nanmean(sample, 1).var(ddof=1)) / runs if runs > 1 else 0.0
    drawn = within * (1 - 1 / episodes) + between * (1 - 1 / runs)
    if drawn == 0:
        return float(ndtri(0.975))
    freedom = (within + between) ** 2 / (within**2 / max(1, episodes - 1) + between**2 / max(1, runs - 1))
    return float(stdtrit(freedom, 0.975)) * math.sqrt((within + between) / drawn)
