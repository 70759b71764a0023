from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from rldistill.evaluate.statistics import (
    bootstrap_means,
    iqm,
    mean,
    normalised_interval,
    normalised_score,
    stratified_bootstrap,
)

RETURNS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


def test_means_by_hand() -> None:
    returns = np.array([[1.0, 2.0, 3.0, 100.0], [0.0, 4.0, 5.0, -50.0]])
    assert mean(returns) == pytest.approx(65 / 8)
    # in order -50 0 1 2 3 4 5 100; two are left out at each end; (1 + 2 + 3 + 4) / 4
    assert iqm(returns) == pytest.approx(2.5)
    # floor(3 / 4) = 0: nothing is left out of three
    assert iqm(np.array([[0.0, 0.0, 9.0]])) == pytest.approx(3)


@given(RETURNS)
def test_the_iqm_is_scipys_trimmed_mean(returns: list[float]) -> None:
    assert iqm(np.array([returns])) == pytest.approx(trim_mean(returns, 0.25), abs=1e-9)


@given(RETURNS, st.floats(-100, 100))
def test_the_iqm_moves_with_its_data(returns: list[float], shift: float) -> None:
    data = np.array([returns])
    assert data.min() - 1e-9 <= iqm(data) <= data.max() + 1e-9
    assert iqm(data + shift) == pytest.approx(iqm(data) + shift, abs=1e-6)


def test_the_bootstrap_interval_of_a_mean_is_about_that_of_the_normal_law() -> None:
    data = np.random.default_rng(1).normal(10, 2, (1, 400))
    low, high = stratified_bootstrap(data)
    half = 1.96 * data.std() / 20
    assert low == pytest.approx(data.mean() - half, abs=0.03)
    assert high == pytest.approx(data.mean() + half, abs=0.03)


def test_the_bootstrap_draws_seeds_and_then_episodes_within_them() -> None:
    # two runs that never vary within: a draw has 0, 1 or 2 of the second, with odds 1 : 2 : 1
    means = bootstrap_means(np.array([[0.0] * 50, [10.0] * 50]))
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0, 5, 10]
    np.testing.assert_allclose(counts / 2_000, [0.25, 0.5, 0.25], atol=0.05)
    assert stratified_bootstrap(np.array([[7.0, 7.0, 7.0]])) == (7, 7)


def test_the_same_seed_gives_the_same_interval() -> None:
    data = np.random.default_rng(2).normal(size=(3, 20))
    assert (
        stratified_bootstrap(data, seed=5) == stratified_bootstrap(data, seed=5) != stratified_bootstrap(data, seed=6)
    )


def test_normalised_scores_by_hand() -> None:
    policy, teacher, random = np.array([[5.0, 7.0]]), np.array([[10.0, 10.0]]), np.array([[-10.0, -10.0]])
    assert normalised_score(policy, teacher, random) == pytest.approx((6 + 10) / 20)
    # one return of two is drawn twice a quarter of the time, so the interval spans all: 5 to 7
    assert normalised_interval(policy, teacher, random) == pytest.approx((15 / 20, 17 / 20))
    assert normalised_interval(teacher, teacher, random) == (1.0, 1.0)
    assert normalised_interval(random, teacher, random) == (0.0, 0.0)
    assert normalised_score(policy, random, teacher) is None
    assert normalised_score(policy, teacher, teacher) is None
    assert normalised_interval(policy, random, teacher) is None


def test_the_interval_of_a_normalised_score_holds_the_doubt_about_teacher_and_random() -> None:
    rng = np.random.default_rng(3)
    policy, teacher, random = np.full((1, 30), 8.0), rng.normal(10, 3, (1, 30)), rng.normal(0, 3, (1, 30))
    interval = normalised_interval(policy, teacher, random)
    score = normalised_score(policy, teacher, random)
    assert interval is not None
    assert score is not None
    assert interval[0] < score < interval[1]


def test_there_is_no_interval_where_the_teacher_may_be_no_better_than_random() -> None:
    # the means are 0.5 and 0, but 0.5 comes of one good episode in twenty, which 36% of the draws leave out
    teacher, random = np.zeros((1, 20)), np.zeros((1, 20))
    teacher[0, 0] = 10
    assert normalised_score(teacher.copy(), teacher, random) == 1
    assert normalised_interval(teacher.copy(), teacher, random) is None


def test_repeated_episodes_do_not_narrow_an_interval() -> None:
    returns = np.tile([0.0, 10.0, 20.0, 30.0], 25)[None]
    # The mean of 4 draws from 0, 10, 20, 30 has the standard deviation sqrt(125) / sqrt(4) = 5.59; of 100, 1.118.
    assert bootstrap_means(returns, distinct=4).std() == pytest.approx(5.59, rel=0.05)
    assert bootstrap_means(returns).std() == pytest.approx(1.118, rel=0.05)
