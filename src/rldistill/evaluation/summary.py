"""Statistics of one policy's episodes, and warnings about too few of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rldistill.core.policy import Policy
from rldistill.evaluation.episodes import Episodes
from rldistill.evaluation.records import Doubt, Fidelity, PolicyResult, Profile, RunReturns
from rldistill.evaluation.statistics import (
    Estimate,
    Returns,
    bootstrap,
    interval,
    iqm,
    mean,
    mean_interval,
    median,
    normalized_gap,
    normalized_interval,
    normalized_score,
    performance_profile,
    probability_of_improvement,
)
from rldistill.policies.cost import measure_cost

MIN_DISTINCT_EPISODES, MIN_TRAINING_SEEDS = 10, 3
NUM_THRESHOLDS = 41


def stacked_returns(runs: Mapping[int | None, Episodes]) -> Returns:
    """Return the returns of all runs, `[runs, episodes]`."""
    return np.stack([episodes.returns for episodes in runs.values()])


def num_distinct(*policies: Mapping[int | None, Episodes]) -> int:
    """Return the smallest number of distinct episodes of any run."""
    return min(episodes.distinct for runs in policies for episodes in runs.values())


def profile_thresholds(returns: Mapping[str, Returns]) -> Returns:
    """Return the thresholds of performance profiles, from the lowest to the highest return of all policies.

    They are quantiles, so that a single outlier does not move them.
    """
    values = np.concatenate([part.ravel() for part in returns.values()])
    return np.unique(np.quantile(values, np.linspace(0, 1, NUM_THRESHOLDS), method="nearest"))


def return_statistics(
    own: Returns, teacher: Returns, random: Returns, thresholds: Returns, distinct: tuple[int, int]
) -> dict[str, Any]:
    """Return all estimates with their 95% intervals, as fields of `PolicyResult`.

    Args:
        own: returns of the policy, `[runs, episodes]`.
        teacher: returns of the teacher.
        random: returns of random play.
        thresholds: thresholds of the performance profile.
        distinct: numbers of distinct episodes, of the policy and of the comparison of all three.
    """
    alone, compared = distinct
    gap = float(normalized_gap(own, teacher, random))
    improvement = None
    if own is not teacher:
        improvement = {
            "estimate": float(probability_of_improvement(own, teacher)),
            "ci95": interval(probability_of_improvement, own, teacher, distinct=compared),
        }
    return {
        "mean": float(mean(own)),
        "ci95": mean_interval(own, alone),
        "median": float(median(own)),
        "median_ci95": interval(median, own, distinct=alone),
        "iqm": float(iqm(own)),
        "iqm_ci95": interval(iqm, own, distinct=alone),
        "normalized": normalized_score(own, teacher, random),
        "normalized_ci95": normalized_interval(own, teacher, random, distinct=compared),
        "optimality_gap": None if np.isnan(gap) else gap,
        "optimality_gap_ci95": interval(normalized_gap, own, teacher, random, distinct=compared),
        "probability_of_improvement": improvement,
        "profile": _profile(own, thresholds, alone),
    }


def _profile(own: Returns, thresholds: Returns, distinct: int) -> Profile:
    def profile(returns: Returns) -> Estimate:
        return performance_profile(returns, thresholds)

    low, high = np.percentile(bootstrap(profile, own, distinct=distinct), [2.5, 97.5], axis=0)
    return Profile(share=profile(own).tolist(), low=low.tolist(), high=high.tolist())


def policy_result(
    runs: Mapping[int | None, Episodes],
    policy: Policy | None,
    statistics: Mapping[str, Any],
    fidelity: Fidelity | None,
    **fields: Any,
) -> PolicyResult:
    """Return the result of a policy from its episodes, its statistics, its cost and its fidelity."""
    cost = measure_cost(policy)
    rates = [episodes.success_rate for episodes in runs.values() if episodes.success_rate is not None]
    return PolicyResult(
        runs=[RunReturns(training_seed=seed, returns=run.returns.tolist()) for seed, run in runs.items()],
        distinct_episodes=num_distinct(runs),
        distinct_runs=len({episodes.returns.tobytes() for episodes in runs.values()}),
        success_rate=float(np.mean(rates)) if rates else None,
        discounted_mean=float(np.mean([episodes.discounted for episodes in runs.values()])),
        agreement=None if fidelity is None else fidelity.own_states.agreement,
        action_rmse=None if fidelity is None else fidelity.own_states.action_rmse,
        fidelity=fidelity,
        **vars(cost),
        **statistics,
        **fields,
    )


def warnings_of(policies: Mapping[str, PolicyResult]) -> list[Doubt]:
    """Return warnings about too few episodes or training seeds."""
    students = {name: entry for name, entry in policies.items() if entry.kind == "student"}
    episodes = {name: entry.distinct_episodes for name, entry in policies.items()}
    seeds = {name: entry.distinct_runs for name, entry in students.items()}
    alike = [name for name, entry in students.items() if entry.distinct_runs < len(entry.runs)]
    found = [
        _too_few(
            "few-episodes", episodes, MIN_DISTINCT_EPISODES, "distinct episodes are too few for a reliable estimate"
        ),
        _too_few(
            "few-seeds", seeds, MIN_TRAINING_SEEDS, "different training seeds cannot show the variance between them"
        ),
    ]
    if alike:
        text = f"training seeds with the same returns in every episode count as one: {', '.join(alike)}"
        found.append(Doubt(name="same-seeds", text=text))
    return [doubt for doubt in found if doubt is not None]


def _too_few(name: str, counts: Mapping[str, int], least: int, text: str) -> Doubt | None:
    few = [f"{policy} has {count}" for policy, count in counts.items() if count < least]
    return Doubt(name=name, text=f"fewer than {least} {text}: {', '.join(few)}") if few else None
