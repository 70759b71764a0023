"""Estimates over runs and episodes, with intervals (Agarwal 2021, arXiv 2108.13264). Arrays are `[runs, episodes]`.

A run is one training seed, and column k the episode with the k-th seed, the same for all runs and policies. With tasks
as columns, the estimates are rliable's. All functions are pure: the same numbers and seed give the same estimate.
Statistics take draws of their samples, too: `[..., runs, episodes]` gives `[...]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

REPETITIONS = 2_000
CHUNK = 2_000_000
"""How many numbers are drawn at a time."""
Returns = NDArray[np.floating[Any]]
Estimate = NDArray[np.float64]
Statistic = Callable[..., Estimate]
Interval = tuple[float, float]


def mean(returns: Returns) -> Estimate:
    """The mean over all runs and episodes."""
    return np.asarray(returns.mean((-2, -1)))


def median(returns: Returns) -> Estimate:
    """The median, over the episodes' seeds (or tasks), of the mean over runs; of a single run, that of its episodes."""
    return np.asarray(np.median(returns.mean(-2), -1))


def iqm(returns: Returns) -> Estimate:
    """Interquartile mean: the mean of what is left without the lowest and the highest quarter (floor(n / 4) each)."""
    ordered = np.sort(returns.reshape(*returns.shape[:-2], -1), axis=-1)
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(-1))


def optimality_gap(scores: Returns, target: float = 1.0) -> Estimate:
    """How far scores fall short of `target` on average, where more than that counts as just that."""
    return np.asarray(target - np.minimum(scores, target).mean((-2, -1)))


def probability_of_improvement(ours: Returns, theirs: Returns) -> Estimate:
    """P(a run of ours scores more than one of theirs in the same column), averaged over columns; ties count half."""
    a, b = ours[..., :, None, :], theirs[..., None, :, :]
    return np.asarray(((a > b) + 0.5 * (a == b)).mean((-3, -2, -1)))


def performance_profile(scores: Returns, thresholds: Sequence[float] | Returns) -> Estimate:
    """The share of scores above each threshold, `[..., thresholds]`."""
    return np.stack([(scores > threshold).mean((-2, -1)) for threshold in thresholds], -1)


def normalised(policy: Returns, teacher: Returns, random: Returns) -> Estimate:
    """(policy - random) / (teacher - random) of the means; NaN where the teacher is no better than random."""
    span = _positive(mean(teacher) - mean(random))
    return np.asarray((mean(policy) - mean(random)) / span)


def normalised_gap(policy: Returns, teacher: Returns, random: Returns) -> Estimate:
    """The optimality gap of scores that are 0 at random's mean and 1 at the teacher's; NaN as for `normalised`."""
    low = mean(random)[..., None, None]
    return optimality_gap((policy - low) / _positive(mean(teacher)[..., None, None] - low))


def _positive(span: Estimate) -> Estimate:
    return np.where(span > 0, span, np.nan)


def bootstrap(statistic: Statistic, *samples: Returns, seed: int = 0, distinct: int | None = None) -> Estimate:
    """What `statistic` gives `[REPETITIONS, ...]` of samples whose runs and episodes are drawn with replacement.

    Both axes are resampled. The runs are drawn for each sample by itself, while one draw of episodes serves all runs
    and samples, because episode k has the same seed everywhere (the pigeonhole bootstrap, Owen 2007, arXiv 0712.1111:
    with several runs a little wide, never too narrow). A single run is drawn every time, so that only its episodes
    vary. Where only `distinct` episodes differ, so many are drawn, since the others tell nothing new.
    """
    episodes = _same_columns(samples)

    def draw(count: int, rng: np.random.Generator) -> list[Returns]:
        column = rng.integers(0, episodes, (count, 1, distinct or episodes))
        return [sample[rng.integers(0, len(sample), (count, len(sample), 1)), column] for sample in samples]

    return _drawn(statistic, samples, draw, seed)


def bootstrap_within_tasks(statistic: Statistic, *scores: Returns, seed: int = 0) -> Estimate:
    """What `statistic` gives `[REPETITIONS, ...]` of scores `[runs, tasks]` whose runs are drawn anew for each task.

    The first axis alone is resampled, within each column and sample by itself: rliable's stratified bootstrap.
    """
    tasks = np.arange(_same_columns(scores))

    def draw(count: int, rng: np.random.Generator) -> list[Returns]:
        return [score[rng.integers(0, len(score), (count, *score.shape)), tasks] for score in scores]

    return _drawn(statistic, scores, draw, seed)


def percentile_interval(draws: Estimate) -> Interval:
    """The middle 95% of draws, which is rliable's interval."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def interval(statistic: Statistic, *samples: Returns, seed: int = 0, distinct: int | None = None) -> Interval | None:
    """The 95% interval of `statistic`, from `bootstrap`, corrected for bias and skewness (BCa, Efron 1987).

    A bootstrap of few draws too little: its variance lacks a factor n / (n - 1), and its quantiles are the normal law's
    where Student's are due. Both are made up for, as Hesterberg (2015, arXiv 1411.5279) does for the percentile
    interval, by reading its draws further out.

    Returns:
        None where the statistic is NaN, and where it is in over 2.5% of the draws: a ratio has no finite interval when
        its denominator may be 0 (Fieller 1954), and one from the other draws would be too narrow.
    """
    estimate = float(statistic(*samples))
    draws = bootstrap(statistic, *samples, seed=seed, distinct=distinct)
    valid = draws[~np.isnan(draws)]
    if math.isnan(estimate) or len(valid) < 0.975 * REPETITIONS:
        return None
    below = ((valid < estimate).mean() + (valid <= estimate).mean()) / 2
    bias = float(norm.ppf(np.clip(below, 1 / REPETITIONS, 1 - 1 / REPETITIONS)))
    acceleration = _acceleration(statistic, samples)
    if distinct is not None:
        acceleration *= math.sqrt(samples[0].shape[1] / distinct)
    half = _half_width(samples[0], distinct or samples[0].shape[1])
    ends = []
    for z in (bias - half, bias + half):
        bend = 1 - acceleration * z
        ends.append(float(norm.cdf(bias + z / bend)) if bend > 0 else float(z > 0))
    low, high = np.quantile(valid, ends)
    return float(low), float(high)


def mean_interval(returns: Returns) -> Interval:
    """The 95% interval of the mean, which there always is."""
    found = interval(mean, returns)
    assert found is not None
    return found


def normalised_score(policy: Returns, teacher: Returns, random: Returns) -> float | None:
    """(policy - random) / (teacher - random) of the means; None where the teacher is no better than random."""
    return _known(normalised(policy, teacher, random))


def normalised_interval(
    policy: Returns, teacher: Returns, random: Returns, seed: int = 0, distinct: int | None = None
) -> Interval | None:
    """The 95% interval of the normalised score, all three resampled, or None, as for `interval`.

    The teacher itself has 1 and the random policy 0, exactly: the same draws stand on both sides.
    """
    if normalised_score(policy, teacher, random) is None:
        return None
    if policy is teacher or policy is random:
        return (1.0, 1.0) if policy is teacher else (0.0, 0.0)
    return interval(normalised, policy, teacher, random, seed=seed, distinct=distinct)


def _known(estimate: Estimate) -> float | None:
    return None if np.isnan(estimate) else float(estimate)


def _same_columns(samples: Sequence[Returns]) -> int:
    columns = {int(sample.shape[1]) for sample in samples}
    if len(columns) > 1:
        raise ValueError(f"expected as many columns in all samples, found {sorted(columns)}")
    return columns.pop()


def _drawn(
    statistic: Statistic,
    samples: Sequence[Returns],
    draw: Callable[[int, np.random.Generator], list[Returns]],
    seed: int,
) -> Estimate:
    rng = np.random.default_rng(seed)
    most = max(1, CHUNK // max(sample.size for sample in samples))
    counts = [min(most, REPETITIONS - done) for done in range(0, REPETITIONS, most)]
    return np.concatenate([statistic(*draw(count, rng)) for count in counts])


def _acceleration(statistic: Statistic, samples: Sequence[Returns]) -> float:
    """A sixth of the skewness of the estimate, from what leaving out each episode and each run changes."""
    influence = np.concatenate([_influence(values) for values in _left_out(statistic, samples)] or [np.zeros(1)])
    spread = float((influence**2).sum())
    return float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _left_out(statistic: Statistic, samples: Sequence[Returns]) -> Iterator[Estimate]:
    if samples[0].shape[1] > 1:
        yield _without_each_episode(statistic, samples)
    for place, sample in enumerate(samples):
        if len(sample) > 1:
            fewer = (np.delete(sample, run, 0) for run in range(len(sample)))
            yield np.array([float(statistic(*samples[:place], part, *samples[place + 1 :])) for part in fewer])


def _without_each_episode(statistic: Statistic, samples: Sequence[Returns]) -> Estimate:
    episodes = samples[0].shape[1]
    most = max(1, CHUNK // max(sample.size for sample in samples))
    found = []
    for first in range(0, episodes, most):
        gone = np.arange(first, min(first + most, episodes))[:, None]
        kept = np.arange(episodes - 1) + (np.arange(episodes - 1) >= gone)
        found.append(statistic(*(np.moveaxis(sample[:, kept], 0, 1) for sample in samples)))
    return np.concatenate(found)


def _influence(values: Estimate) -> Estimate:
    # A ratio may have no value without some episode; that episode then counts for nothing.
    known = values[~np.isnan(values)]
    return (known.mean() - known) * (1 - 1 / len(values)) if len(known) else known


def _half_width(sample: Returns, episodes: int) -> float:
    """How many of its standard deviations a bootstrap should reach out, by what episodes and runs bring of them."""
    runs = len(sample)
    within = float(sample.mean(0).var(ddof=1)) / episodes if episodes > 1 and sample.shape[1] > 1 else 0.0
    between = float(sample.mean(1).var(ddof=1)) / runs if runs > 1 else 0.0
    drawn = within * (1 - 1 / episodes) + between * (1 - 1 / runs)
    if drawn == 0:
        return float(norm.ppf(0.975))
    freedom = (within + between) ** 2 / (within**2 / max(1, episodes - 1) + between**2 / max(1, runs - 1))
    return float(student_t.ppf(0.975, freedom)) * math.sqrt((within + between) / drawn)
