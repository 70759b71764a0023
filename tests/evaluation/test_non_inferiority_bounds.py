"""Bounds, risks and plans of the non-inferiority test against the formulas of its docstring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from rldistill.evaluation.non_inferiority import NonInferiorityResult, RiskLevels, least_episodes, non_inferior

Array = NDArray[np.float64]

# Two-way layouts of 4 episodes: effects of episodes (symmetrical or skewed), of runs, and interactions, which sum to 0.
EPISODES, SKEWED = np.array([-3.0, -1.0, 1.0, 3.0]), np.array([-9.0, 1.0, 3.0, 5.0])
RUNS = np.array([[-1.0], [-0.5], [1.5]])
PLAID = np.array([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
LEADS = {
    "one run": 4 + EPISODES[None],
    "one skewed run": 4 + SKEWED[None],
    "two episodes": 2 + np.array([[-1.0, 1.0]]),
    "three skewed episodes": 4 + np.array([[-5.0, 1.0, 4.0]]),
    "runs": 4 + EPISODES + RUNS + PLAID,
    "two runs": 4 + EPISODES + RUNS[1:] + PLAID[:2],
    "skewed runs": 4 + SKEWED + RUNS + PLAID,
    "runs with equal means": 4 + EPISODES + 4 * PLAID,
    "runs that nearly agree": 4 + EPISODES + 1e-3 * RUNS,
    "more runs than episodes": 4 + EPISODES[:2] + np.concatenate([RUNS, RUNS + 1]),
    "runs that differ a little": 4 + EPISODES + 0.1 * RUNS + PLAID,
    "episodes that agree": 4 + 0 * EPISODES + RUNS,
}
BY_LEAD = pytest.mark.parametrize("lead", LEADS.values(), ids=LEADS)


def decide(lead: Array, risk: float = 0.05, **options: Any) -> NonInferiorityResult:
    """Test a student whose differences are `lead`: teacher and random play score 0."""
    zeros = np.zeros((1, lead.shape[1]))
    return non_inferior(lead, zeros, zeros, levels=RiskLevels(risk), **options)


def components(lead: Array, episodes: int) -> tuple[float, float]:
    """Return the variances of a mean over `episodes` that come from episode seeds and training seeds."""
    runs, columns = lead.shape
    of_episodes = float(np.var(lead.mean(0), ddof=1)) / episodes
    if runs == 1:
        return of_episodes, 0.0
    squares = sum(
        (lead[i, k] - lead[i].mean() - lead[:, k].mean() + lead.mean()) ** 2
        for i in range(runs)
        for k in range(columns)
    )
    noise = squares / ((runs - 1) * (columns - 1))
    of_run = max(0.0, float(np.var(lead.mean(1), ddof=1)) - noise / columns)
    return of_episodes, (of_run + noise / episodes) / runs


def mean_skewness(lead: Array, episodes: int) -> float:
    """Return the doubled skewness of the mean: that of the columns, reduced by the variance of the runs."""
    columns, size = lead.mean(0), lead.shape[1]
    if size < 3 or not columns.std():
        return 0.0
    skewness = np.mean((columns - columns.mean()) ** 3) / columns.std() ** 3 * math.sqrt(size * (size - 1)) / (size - 2)
    of_episodes, of_runs = components(lead, episodes)
    return float(2 * skewness / math.sqrt(episodes) * (of_episodes / (of_episodes + of_runs)) ** 1.5)


def needed_score(lead: Array, episodes: int, risk: float, sign: int) -> float:
    """Return the least T with min(T, T + k T^2 / 3 + k^2 T^3 / 27 + k / 6) equal to the quantile."""
    of_episodes, of_runs = components(lead, episodes)
    square = of_episodes * t.isf(risk, episodes - 1) ** 2
    if of_runs:
        square += of_runs * t.isf(risk, len(lead) - 1) ** 2
    quantile, k = math.sqrt(square / (of_episodes + of_runs)), sign * mean_skewness(lead, episodes)
    if k >= 0 and not (k and quantile < 1):
        return quantile
    score = brentq(lambda x: x + k * x**2 / 3 + k**2 * x**3 / 27 + k / 6 - quantile, -100, 100, xtol=1e-13)
    return max(quantile, float(score))


@BY_LEAD
@pytest.mark.parametrize("risk", [0.05, 0.01])
def test_bounds(lead: Array, risk: float) -> None:
    found, episodes = decide(lead, risk), lead.shape[1]
    std = math.sqrt(sum(components(lead, episodes)))
    assert found.lower == pytest.approx(lead.mean() - std * needed_score(lead, episodes, risk, 1), rel=1e-9)
    assert found.upper == pytest.approx(lead.mean() + std * needed_score(lead, episodes, risk, -1), rel=1e-9)
    assert (found.margin, found.risk, found.analysis, found.episodes) == (0.05, risk, 1, episodes)
    assert found.min_episodes == least_episodes(0.05, risk)


@BY_LEAD
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0, 2.0])
def test_p_is_the_risk_at_which_the_lower_bound_is_0(lead: Array, share: float) -> None:
    lead = lead - lead.mean() * (1 - share)
    p = decide(lead).p
    assert p is not None
    assert 0 < p < 0.5
    assert decide(lead, p).lower == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["runs", "two runs"])
def test_p_of_negative_estimates_is_that_of_welch_and_satterthwaite(name: str) -> None:
    lead = LEADS[name] - LEADS[name].mean() - 1
    of_episodes, of_runs = components(lead, 4)
    freedom = (of_episodes + of_runs) ** 2 / (of_episodes**2 / 3 + of_runs**2 / (len(lead) - 1))
    assert decide(lead).p == pytest.approx(t.sf(-1 / math.sqrt(of_episodes + of_runs), freedom))


def test_tiny_returns_are_tested_as_large_ones() -> None:
    one, tiny = decide(LEADS["one skewed run"]), decide(1e-90 * LEADS["one skewed run"])
    assert tiny.p == pytest.approx(one.p)
    assert tiny.episodes_needed == one.episodes_needed


@pytest.mark.parametrize(
    ("lead", "p", "decision"), [(1.0, 0, "yes"), (0.5, 0, "yes"), (0.0, 1, "undecided"), (-1.0, 1, "no")]
)
def test_returns_without_spread(lead: float, p: float, decision: str) -> None:
    found = decide(np.full((2, 60), lead))
    assert (found.lower, found.upper, found.p, found.decision) == (lead, lead, p, decision)
    assert found.episodes_needed == (None if decision == "undecided" else 0)
    # Fewer episodes than a yes takes: as many as are missing
    assert decide(np.full((1, 40), 1.0)).episodes_needed == 19


def test_returns_of_teacher_and_random_play_are_means_over_their_runs() -> None:
    teacher, random = np.array([[10.0, 20.0, 30.0], [30.0, 20.0, 30.0]]), np.array([[1.0, 5.0, 0.0], [3.0, 1.0, 0.0]])
    student = np.array([[19.5, 19.0, 29.0]])
    # 0.9 * (20, 20, 30) + 0.1 * (2, 3, 0) = (18.2, 18.3, 27)
    expected, found = decide(np.array([[1.3, 0.7, 2.0]])), non_inferior(student, teacher, random, 0.1)
    assert (found.lower, found.p) == (pytest.approx(expected.lower), pytest.approx(expected.p))
    assert (found.margin, found.min_episodes) == (0.1, 29)
    # Returns of single precision are averaged in double precision.
    single, zeros = np.random.default_rng(0).normal(3, 1, (2, 99)).astype(np.float32), np.zeros((1, 99), np.float32)
    assert non_inferior(single, zeros, zeros).lower == decide(single.astype(np.float64)).lower


def test_total_risk_counts_for_numbers_of_episodes() -> None:
    zeros, lead = np.zeros((1, 40)), 3 + np.tile([-1.0, 1.0], 20)[None]
    found = non_inferior(lead, zeros, zeros, levels=RiskLevels(0.001, 0.2, 3))
    # 0.95^31 = 0.204, 0.95^32 = 0.194
    assert (found.risk, found.min_episodes, found.analysis, found.decision) == (0.001, 32, 3, "yes")
    assert [least_episodes(margin) for margin in (0.7, 0.9, 0.98)] == [3, 2, 2]


def power(lead: Array, episodes: int, risk: float) -> float:
    """Return the power of `episodes`, by the approximation of the noncentral t (Abramowitz & Stegun 26.7.10)."""
    of_episodes, of_runs = components(lead, episodes)
    sign = 1 if lead.mean() > 0 else -1
    needed = needed_score(lead, episodes, risk, sign)
    parts = of_episodes**2 / (episodes - 1) + (of_runs**2 / (len(lead) - 1) if of_runs else 0.0)
    freedom = (of_episodes + of_runs) ** 2 / parts
    shift = abs(lead.mean()) / math.sqrt(of_episodes + of_runs) - needed * (1 - 1 / (4 * freedom))
    return float(norm.cdf(shift / math.sqrt(1 + needed**2 / (2 * freedom))))


PLANNED = ["one run", "one skewed run", "skewed runs", "runs with equal means", "runs that differ a little"]


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("estimate", [0.05, 0.4, 1.0, -0.4, -1.0])
def test_episodes_needed_are_the_first_with_the_planned_power(name: str, estimate: float) -> None:
    lead = LEADS[name] - LEADS[name].mean() + estimate
    needed = decide(lead).episodes_needed
    if needed is None:
        assert power(lead, 1_000_000, 0.05) < 0.88
        return
    count = lead.shape[1] + needed
    least = 59 if estimate > 0 else 5
    assert count >= least
    assert power(lead, count, 0.05) >= 0.88
    assert count == least or power(lead, count - 1, 0.05) < 0.88


def test_no_number_of_episodes_decides_without_a_difference() -> None:
    assert decide(EPISODES[None]).episodes_needed is None
