from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipys_bootstrap
from scipy.stats import trim_mean

from rldistill.evaluation.statistics import (
    Estimate,
    Interval,
    Returns,
    Statistic,
    bootstrap,
    estimate,
    iqm,
    mean,
    median,
    normalized_gap,
    normalized_score,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

RETURNS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


def interval(statistic: Statistic, *samples: Returns, seed: int = 0) -> Interval:
    found = estimate(statistic, *samples, seed=seed).ci95
    assert found is not None
    return found


def test_means_by_hand() -> None:
    returns = np.array([[1.0, 2.0, 3.0, 100.0], [0.0, 4.0, 5.0, -50.0]])
    assert mean(returns) == pytest.approx(65 / 8)
    # in order -50 0 1 2 3 4 5 100; two are left out at each end; (1 + 2 + 3 + 4) / 4
    assert iqm(returns) == pytest.approx(2.5)
    # floor(3 / 4) = 0: nothing is left out of three
    assert iqm(np.array([[0.0, 0.0, 9.0]])) == pytest.approx(3)
    # means over runs 0.5 3 4 25, of which the middle two have the mean 3.5
    assert median(returns) == pytest.approx(3.5)
    # up to 2, eight returns are 1 2 2 2 0 2 2 -50, whose mean is -39/8
    assert optimality_gap(returns, target=2) == pytest.approx(2 + 39 / 8)
    # above 2: 3 100 4 5; above 5: 100
    np.testing.assert_allclose(performance_profile(returns, [2, 5]), [4 / 8, 1 / 8])


def test_improvement_is_of_episodes_with_the_same_seed() -> None:
    ours, theirs = np.array([[1.0, 5.0, 3.0, 0.0], [2.0, 6.0, 3.0, 9.0]]), np.array([[1.5, 4.0, 3.0, 1.0]])
    # by column 1/2, 2/2, two ties, 1/2
    assert probability_of_improvement(ours, theirs) == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4)
    assert probability_of_improvement(theirs, ours) == pytest.approx(1 - (0.5 + 1 + 0.5 + 0.5) / 4)
    found = interval(probability_of_improvement, ours, theirs)
    assert 0 <= found[0] < 0.625 < found[1] <= 1
    assert interval(probability_of_improvement, ours + 10, theirs) == (1, 1)


def test_the_gap_of_a_normalized_score_by_hand() -> None:
    policy, teacher, random = np.array([[5.0, 20.0]]), np.array([[8.0, 12.0]]), np.array([[1.0, -1.0]])
    # scores 0.5 and 2, of which 1 counts
    assert normalized_gap(policy, teacher, random) == pytest.approx(0.25)
    # the teacher's own episodes are 0.8 and 1.2
    assert normalized_gap(teacher, teacher, random) == pytest.approx(0.1)
    assert np.isnan(normalized_gap(policy, random, teacher))
    assert estimate(normalized_gap, policy, random, teacher).ci95 is None


@given(RETURNS)
def test_the_iqm_is_scipys_trimmed_mean(returns: list[float]) -> None:
    assert iqm(np.array([returns])) == pytest.approx(trim_mean(returns, 0.25), abs=1e-9)


@given(RETURNS, st.floats(-100, 100))
def test_the_iqm_moves_with_its_data(returns: list[float], shift: float) -> None:
    data = np.array([returns])
    assert data.min() - 1e-9 <= iqm(data) <= data.max() + 1e-9
    assert iqm(data + shift) == pytest.approx(iqm(data) + shift, abs=1e-6)


def test_the_interval_of_a_mean_is_about_that_of_the_normal_law() -> None:
    data = np.random.default_rng(1).normal(10, 2, (1, 400))
    half = 1.96 * data.std() / 20
    for low, high in (interval(mean, data), np.percentile(bootstrap(mean, data), [2.5, 97.5])):
        assert low == pytest.approx(data.mean() - half, abs=0.03)
        assert high == pytest.approx(data.mean() + half, abs=0.03)


def test_the_interval_of_skewed_returns_is_scipys() -> None:
    data = np.random.default_rng(4).exponential(1, (1, 300))
    for statistic, theirs in ((mean, np.mean), (median, np.median)):
        expected = scipys_bootstrap(data, theirs, vectorized=True, n_resamples=5_000, rng=0).confidence_interval
        found = interval(statistic, data)
        # 0.1 of its width: four deviations of the error of 2,000 draws
        np.testing.assert_allclose(found, expected, atol=0.1 * (expected.high - expected.low))


def test_an_interval_of_few_episodes_is_students() -> None:
    half = np.random.default_rng(5).normal(0, 1, 10)
    data = np.concatenate([half, -half])[None]
    # t(19) is 2.093 at 97.5%
    assert interval(mean, data)[1] == pytest.approx(2.093 * data.std(ddof=1) / np.sqrt(20), rel=0.1)
    assert np.percentile(bootstrap(mean, data), 97.5) < interval(mean, data)[1]


def test_the_bootstrap_draws_seeds_and_episodes() -> None:
    # two runs that never vary within: a draw has 0, 1 or 2 of the second, with odds 1 : 2 : 1
    means = bootstrap(mean, np.array([[0.0] * 50, [10.0] * 50]))
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 5, 10]
    np.testing.assert_allclose(counts / 2_000, [0.25, 0.5, 0.25], atol=0.05)
    assert estimate(mean, np.array([[7.0, 7.0, 7.0]])) == Estimate(7, (7, 7))
    # runs that play alike tell no more than one of them
    one = np.arange(20.0)[None]
    assert bootstrap(mean, np.repeat(one, 5, 0)).std() == pytest.approx(one.std() / np.sqrt(20), rel=0.05)


def test_one_draw_of_episodes_serves_all_policies() -> None:
    ease = np.random.default_rng(6).normal(0, 100, (1, 50))
    draws = bootstrap(lambda a, b: mean(a) - mean(b), ease + 3, ease)
    np.testing.assert_allclose(draws, 3)
    with pytest.raises(ValueError, match="same number of columns"):
        bootstrap(lambda a, b: mean(a) - mean(b), ease, ease[:, :20])


def test_the_same_seed_gives_the_same_interval() -> None:
    data = np.random.default_rng(2).normal(size=(3, 20))
    assert interval(mean, data, seed=5) == interval(mean, data, seed=5) != interval(mean, data, seed=6)


@pytest.mark.parametrize("law", ["normal", "exponential"])
def test_an_interval_holds_the_truth_95_times_of_100(law: str) -> None:
    rng = np.random.default_rng(7)
    draw, truth = (rng.normal, 0.0) if law == "normal" else (rng.exponential, 1.0)
    hits = 0
    for _ in range(400):
        low, high = interval(mean, draw(size=(1, 50)))
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.98  # deviation 0.011


def test_normalized_scores_by_hand() -> None:
    policy, teacher, random = np.array([[5.0, 7.0]]), np.array([[10.0, 10.0]]), np.array([[-10.0, -10.0]])
    score = normalized_score(policy, teacher, random)
    assert score is not None
    assert score.value == pytest.approx((6 + 10) / 20)
    # one return of two is drawn twice a quarter of the time, so the interval spans all: 5 to 7
    assert score.ci95 == pytest.approx((15 / 20, 17 / 20))
    assert normalized_score(teacher, teacher, random) == Estimate(1.0, (1.0, 1.0))
    assert normalized_score(random, teacher, random) == Estimate(0.0, (0.0, 0.0))
    assert normalized_score(policy, random, teacher) is None
    assert normalized_score(policy, teacher, teacher) is None
    assert normalized_score(teacher, teacher, teacher) is None


def test_the_interval_of_a_normalized_score_holds_the_doubt_about_teacher_and_random() -> None:
    rng = np.random.default_rng(3)
    policy, teacher, random = np.full((1, 30), 8.0), rng.normal(10, 3, (1, 30)), rng.normal(0, 3, (1, 30))
    score = normalized_score(policy, teacher, random)
    assert score is not None
    assert score.ci95 is not None
    assert score.ci95[0] < score.value < score.ci95[1]


def test_there_is_no_interval_where_the_teacher_may_be_no_better_than_random() -> None:
    # the means are 0.5 and 0, but 0.5 comes of one good episode in twenty, which 36% of the draws leave out
    teacher, random = np.zeros((1, 20)), np.zeros((1, 20))
    teacher[0, 0] = 10
    assert normalized_score(teacher.copy(), teacher, random) == Estimate(1.0, None)


def test_repeated_episodes_do_not_narrow_an_interval() -> None:
    returns = np.tile([0.0, 10.0, 20.0, 30.0], 25)[None]
    # The mean of 4 draws from 0, 10, 20, 30 has the standard deviation sqrt(125) / sqrt(4) = 5.59; of 100, 1.118.
    assert bootstrap(mean, returns, distinct=4).std() == pytest.approx(5.59, rel=0.05)
    assert bootstrap(mean, returns).std() == pytest.approx(1.118, rel=0.05)
