from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import multivariate_normal, norm, t, ttest_1samp

from rldistill.evaluation.group_sequential import analysis_times, boundary
from rldistill.evaluation.non_inferiority import RiskLevels, least_episodes, non_inferior

Array = NDArray[np.float64]


def answer(lead: Array, **options: Any) -> Any:
    """Test a student that scores 95 and `lead` against a teacher with 100 and random play with 0."""
    episodes = lead.shape[1]
    return non_inferior(95 + lead, np.full((1, episodes), 100.0), np.zeros((1, episodes)), **options)


def test_the_estimate_by_hand_with_negative_returns() -> None:
    # -120 - 0.95 * -100 - 0.05 * -300 = -10: of a lead of 200, 20 are lost, where 10 may be
    student, teacher, random = (np.full((1, 60), value) for value in (-120.0, -100.0, -300.0))
    assert non_inferior(student, teacher, random).estimate == pytest.approx(-10)
    assert non_inferior(student, teacher, random).decision == "no"
    assert non_inferior(np.full((1, 60), -109.0), teacher, random).decision == "yes"
    # -120 + 0.85 * 100 + 0.15 * 300 = 10
    assert non_inferior(student, teacher, random, 0.15).estimate == pytest.approx(10)


def test_without_skewness_it_is_students_t() -> None:
    half = np.random.default_rng(0).normal(0, 1, 40)
    lead = 0.25 + np.concatenate([half, -half])[None]
    found, expected = answer(lead), ttest_1samp(lead[0], 0, alternative="greater")
    assert found.p == pytest.approx(expected.pvalue)
    assert found.lower == pytest.approx(expected.confidence_interval(0.95).low)
    assert found.upper == pytest.approx(ttest_1samp(lead[0], 0, alternative="less").confidence_interval(0.95).high)
    assert found.decision == ("yes" if expected.pvalue < 0.05 else "undecided")


def test_pairs_of_episodes_cancel_what_their_seed_makes_easy() -> None:
    rng = np.random.default_rng(1)
    ease = rng.normal(0, 50, (1, 80))
    teacher, random = 100 + ease, ease
    student = teacher + rng.normal(0, 2, (1, 80))
    assert non_inferior(student, teacher, random).decision == "yes"
    assert non_inferior(rng.permuted(student), teacher, random).decision == "undecided"


def test_a_tail_of_failures_makes_a_yes_harder_and_a_tail_of_luck_does_not_make_it_easier() -> None:
    up = np.random.default_rng(2).exponential(1, (1, 80)) - 1
    up -= up.mean()
    down, plain = answer(0.2 - up), ttest_1samp((0.2 + up)[0], 0, alternative="greater").pvalue
    assert answer(0.2 + up).p == pytest.approx(plain)
    assert ttest_1samp((0.2 - up)[0], 0, alternative="greater").pvalue == pytest.approx(plain)
    # Hall's score, with the skewness of the mean doubled, by hand
    x = (0.2 - up)[0]
    skew = 2 * np.mean((x - 0.2) ** 3) / np.std(x) ** 3 * math.sqrt(80 * 79) / 78 / math.sqrt(80)
    score = 0.2 / (np.std(x, ddof=1) / math.sqrt(80))
    bent = score + skew * score**2 / 3 + skew**2 * score**3 / 27 + skew / 6
    assert down.p == pytest.approx(t.sf(bent, 79))
    assert down.p > plain
    # p = 0.05 is where the lower bound is 0
    assert answer(0.2 - up - down.lower).p == pytest.approx(0.05)


def test_a_yes_needs_as_many_episodes_as_show_one_failure_in_twenty() -> None:
    # 0.95^58 = 0.051, 0.95^59 = 0.048
    assert (least_episodes(0.05), least_episodes(0.1)) == (59, 29)
    good = np.full((1, 58), 4.0) + np.random.default_rng(3).normal(0, 0.1, (1, 58))
    assert (answer(good).decision, answer(good).episodes_needed) == ("undecided", 1)
    assert answer(np.concatenate([good, [[4.0]]], 1)).decision == "yes"
    assert answer(-good[:, :10]).decision == "no"


def test_training_seeds_are_a_random_effect() -> None:
    # Runs of 1, 2 and 3 that never vary: the mean, 2, has the error sqrt(1 / 3) with 2 degrees of freedom.
    lead = np.tile(np.array([[1.0], [2.0], [3.0]]), (1, 60))
    found = answer(lead)
    assert found.lower == pytest.approx(2 - t.ppf(0.95, 2) / math.sqrt(3))
    assert found.decision == "yes"
    # 0.5 less, and no number of episodes will do: t(2) needs 2.92 errors of 0.577, which is 1.69
    found = answer(lead - 0.5)
    assert (found.decision, found.episodes_needed) == ("undecided", None)
    # two runs leave one degree of freedom
    assert answer(lead[:2]).decision == "undecided"


def test_few_episodes_are_not_decided() -> None:
    single = answer(np.array([[3.0]]))
    assert (single.decision, single.lower, single.p, single.episodes_needed) == ("undecided", None, None, 58)
    # 100 episodes of which only 6 differ
    lead = np.tile(np.array([0.0, 1.0, 2.0, -1.0, 1.0, 3.0]), 20)[None, :100]
    found = answer(lead, distinct=6)
    assert (found.decision, found.episodes, found.episodes_needed) == ("undecided", 6, None)
    assert answer(lead).decision == "yes"


def test_what_it_asks_for_has_a_power_of_80_percent() -> None:
    rng = np.random.default_rng(4)
    half = rng.normal(0, 1, 50)
    half /= np.concatenate([half, -half]).std(ddof=1)
    for effect in (0.1, -0.1):
        found = answer(effect + np.concatenate([half, -half])[None])
        episodes = found.episodes + found.episodes_needed
        # planned for 88%: (1.645 + 1.175)^2 / 0.1^2 = 795, and a little for Student
        assert 795 <= episodes <= 799
        right = [answer(effect + rng.normal(0, 1, (1, episodes))).decision for _ in range(1_000)]
        assert right.count("yes" if effect > 0 else "no") == pytest.approx(880, abs=35)


LAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "upwards": lambda rng, shape: rng.exponential(size=shape) - 1,
    "downwards": lambda rng, shape: 1 - rng.exponential(size=shape),
    "lognormal": lambda rng, shape: np.exp(0.125) - rng.lognormal(0, 0.5, shape),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("episodes", [30, 50, 100])
def test_false_yes_at_the_margin(law: str, episodes: int) -> None:
    rng = np.random.default_rng(5)
    leads = [LAWS[law](rng, (1, episodes)) for _ in range(1_000)]
    # The bound alone, which is too low even without the least number of episodes; 50 expected, 3 deviations of 7 more.
    assert sum(answer(lead).lower > 0 for lead in leads) <= 50 + 21


def test_false_yes_of_a_recipe_that_training_seeds_make_better_or_worse() -> None:
    rng = np.random.default_rng(6)
    yes = 0
    for _ in range(1_000):
        lead = rng.normal(size=(4, 1)) + rng.normal(size=(1, 60)) + rng.normal(size=(4, 60))
        yes += answer(lead).decision == "yes"
    assert yes <= 50 + 21


def test_false_yes_of_runs_that_all_fail_on_the_same_episodes() -> None:
    rng = np.random.default_rng(7)
    # A failure in one episode of 20, of whichever run, is a loss of just 5%.
    for runs, episodes in ((3, 30), (5, 30), (3, 100)):
        leads = [5 - 100 * np.tile(rng.random((1, episodes)) < 0.05, (runs, 1)) for _ in range(1_000)]
        assert sum(answer(lead).decision == "yes" for lead in leads) <= 50 + 21


def test_boundaries_are_those_of_the_tables() -> None:
    # Lan & DeMets' O'Brien-Fleming boundaries for five equal looks at 0.025 (ldbounds, gsDesign)
    found = norm.isf(boundary([1, 2, 3, 4, 5], 0.025))
    np.testing.assert_allclose(found, [4.8769, 3.3569, 2.6803, 2.2898, 2.0310], atol=2e-4)
    assert boundary([70], 0.05) == pytest.approx([0.05])


def test_all_looks_together_have_the_risk() -> None:
    times = np.array([20, 50, 60, 100.0])
    bounds = norm.isf(boundary(times.tolist(), 0.05))
    covariance = np.minimum.outer(times, times) / np.sqrt(np.outer(times, times))
    stay = multivariate_normal(np.zeros(4), covariance, seed=0).cdf(bounds)
    assert 1 - stay == pytest.approx(0.05, abs=2e-4)


def test_looks_end_with_the_last_episode() -> None:
    assert analysis_times(30, 100) == [30, 60, 90, 100]
    assert analysis_times(50, 100) == [50, 100]
    assert analysis_times(100, 100) == [100]


@pytest.mark.parametrize("law", ["normal", "downwards"])
def test_false_yes_with_many_looks(law: str) -> None:
    rng = np.random.default_rng(7)
    counts = analysis_times(30, 180)
    risks = boundary(counts)
    yes = naive = 0
    for _ in range(500):
        lead = LAWS[law](rng, (1, 180))
        parts = [lead[:, :count] for count in counts]
        yes += any(
            answer(part, levels=RiskLevels(risk)).decision == "yes" for part, risk in zip(parts, risks, strict=True)
        )
        naive += any(answer(part).decision == "yes" for part in parts)
    assert yes <= 25 + 15  # 25 expected at most, 3 deviations of 4.9 more
    assert naive > yes  # which is why there is a boundary
