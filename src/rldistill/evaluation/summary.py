"""Statistics of one policy's episodes, warnings about too few of them, and sample efficiency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rldistill.evaluation import statistics as stats
from rldistill.evaluation.episodes import Episodes
from rldistill.evaluation.records import Doubt, Efficiency, Estimate, PolicyResult, Profile, RunReturns
from rldistill.evaluation.statistics import Returns

MIN_DISTINCT_EPISODES, MIN_TRAINING_SEEDS = 10, 3
NUM_THRESHOLDS = 41

Runs = Mapping[int | None, Episodes]
"""Episodes of a policy, by its training seed."""

Curve = Sequence[tuple[int, float]]
"""Environment steps and mean returns, in ascending order of steps."""

LEAD_PERCENTAGES = (50, 75, 90, 95)
"""Percentages of the teacher's lead over random play."""


def stacked_returns(runs: Runs) -> Returns:
    """Return the returns of all runs, `[runs, episodes]`."""
    return np.stack([episodes.returns for episodes in runs.values()])


def num_distinct(*policies: Runs) -> int:
    """Return the smallest number of distinct episodes of any run."""
    return min(episodes.distinct for runs in policies for episodes in runs.values())


def profile_thresholds(returns: Mapping[str, Returns]) -> Returns:
    """Return the thresholds of performance profiles, from the lowest to the highest return of all policies.

    They are quantiles, so that a single outlier does not move them.
    """
    values = np.concatenate([part.ravel() for part in returns.values()])
    return np.unique(np.quantile(values, np.linspace(0, 1, NUM_THRESHOLDS), method="nearest"))


def policy_result(
    name: str, episodes: Mapping[str, Runs], returns: Mapping[str, Returns], thresholds: Returns, **fields: Any
) -> PolicyResult:
    """Return the result of a policy: all estimates with their 95% intervals, and `fields` of other kinds.

    `episodes` and `returns`, `[runs, episodes]`, are those of all policies, with `teacher` and `random`.
    """
    runs, compared = episodes[name], (returns[name], returns["teacher"], returns["random"])
    own, teacher, _ = compared
    distinct = num_distinct(runs)
    distinct_compared = num_distinct(runs, episodes["teacher"], episodes["random"])
    gap = float(stats.normalized_gap(*compared))
    rates = [part.success_rate for part in runs.values() if part.success_rate is not None]
    improvement = None
    if own is not teacher:
        improvement = Estimate(
            estimate=float(stats.probability_of_improvement(own, teacher)),
            ci95=stats.interval(stats.probability_of_improvement, own, teacher, distinct=distinct_compared),
        )
    return PolicyResult(
        runs=[RunReturns(training_seed=seed, returns=part.returns.tolist()) for seed, part in runs.items()],
        distinct_episodes=distinct,
        distinct_runs=len({part.returns.tobytes() for part in runs.values()}),
        mean=float(stats.mean(own)),
        ci95=stats.mean_interval(own, distinct),
        median=float(stats.median(own)),
        median_ci95=stats.interval(stats.median, own, distinct=distinct),
        iqm=float(stats.iqm(own)),
        iqm_ci95=stats.interval(stats.iqm, own, distinct=distinct),
        normalized=stats.normalized_score(*compared),
        normalized_ci95=stats.normalized_interval(*compared, distinct=distinct_compared),
        optimality_gap=None if np.isnan(gap) else gap,
        optimality_gap_ci95=stats.interval(stats.normalized_gap, *compared, distinct=distinct_compared),
        probability_of_improvement=improvement,
        profile=_profile(own, thresholds, distinct),
        success_rate=float(np.mean(rates)) if rates else None,
        discounted_mean=float(np.mean([part.discounted for part in runs.values()])),
        **fields,
    )


def _profile(own: Returns, thresholds: Returns, distinct: int) -> Profile:
    def profile(returns: Returns) -> stats.Estimate:
        return stats.performance_profile(returns, thresholds)

    low, high = np.percentile(stats.bootstrap(profile, own, distinct=distinct), [2.5, 97.5], axis=0)
    return Profile(share=profile(own).tolist(), low=low.tolist(), high=high.tolist())


def warnings_of(policies: Mapping[str, PolicyResult]) -> list[Doubt]:
    """Return warnings about too few episodes or training seeds."""
    students = {name: entry for name, entry in policies.items() if entry.kind == "student"}
    episodes = {name: entry.distinct_episodes for name, entry in policies.items()}
    seeds = {name: entry.distinct_runs for name, entry in students.items()}
    warnings = []
    for warning, counts, least, text in (
        ("few-episodes", episodes, MIN_DISTINCT_EPISODES, "distinct episodes are too few for a reliable estimate"),
        ("few-seeds", seeds, MIN_TRAINING_SEEDS, "different training seeds cannot show the variance between them"),
    ):
        if few := [f"{name} has {count}" for name, count in counts.items() if count < least]:
            warnings.append(Doubt(name=warning, text=f"fewer than {least} {text}: {', '.join(few)}"))
    if alike := [name for name, entry in students.items() if entry.distinct_runs < len(entry.runs)]:
        text = f"training seeds with the same returns in every episode count as one: {', '.join(alike)}"
        warnings.append(Doubt(name="same-seeds", text=text))
    return warnings


def efficiency(curves: Mapping[str, Curve], policies: Mapping[str, PolicyResult]) -> dict[str, Efficiency]:
    """Return each policy's normalized score against its steps, and the first step at each percentage (None: never).

    The evaluation itself is the last point of each of the `curves`. Steps include those of the teacher's data.
    """
    random, span = policies["random"].mean, policies["teacher"].mean - policies["random"].mean
    results = {}
    for name, entry in policies.items():
        if span > 0 and (entry.env_steps or name in curves):
            points = [*curves.get(name, ()), (entry.env_steps, entry.mean)]
            scores = [(float(steps), (value - random) / span) for steps, value in points]
            reached = {
                str(percentage): next((int(steps) for steps, score in scores if score >= percentage / 100), None)
                for percentage in LEAD_PERCENTAGES
            }
            results[name] = Efficiency(curve=scores, to=reached)
    return results
