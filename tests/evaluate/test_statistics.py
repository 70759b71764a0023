from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from rldistill.envs.vector import EnvConfig
from rldistill.evaluate.cost import measure_cost
from rldistill.evaluate.play import play
from rldistill.evaluate.statistics import iqm, normalised_interval, normalised_score, stratified_bootstrap
from rldistill.students import Cnn, Mlp
from rldistill.students.network import NetworkPolicy
from rldistill.types import ActionHead, PolicySpec

from ..conftest import CARTPOLE

RETURNS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


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


def test_normalised_scores_by_hand() -> None:
    policy, teacher, random = np.array([[5.0, 7.0]]), np.array([[10.0, 10.0]]), np.array([[-10.0, -10.0]])
    assert normalised_score(policy, teacher, random) == pytest.approx((6 + 10) / 20)
    # one return of two is drawn twice a quarter of the time, so the interval spans all: 5 to 7
    assert normalised_interval(policy, teacher, random) == pytest.approx((15 / 20, 17 / 20))
    assert normalised_interval(teacher, teacher, random) == (1.0, 1.0)
    assert normalised_score(policy, random, teacher) is None
    assert normalised_interval(policy, random, teacher) is None


def test_costs_by_hand() -> None:
    mlp = measure_cost(Mlp((16,)).build(PolicySpec((8,), "float32", ActionHead("categorical", (4,)))))
    assert (mlp.parameters, mlp.macs) == (8 * 16 + 16 + 16 * 4 + 4, 8 * 16 + 16 * 4)
    assert mlp.bytes == 4 * mlp.parameters
    cnn = measure_cost(
        Cnn((2,), (8,), (4,), (3,)).build(PolicySpec((4, 84, 84), "uint8", ActionHead("q_values", (6,))))
    )
    # 20 x 20 places, 2 channels, 4 x 8 x 8 weights; 800 to 3; 3 to 6
    assert cnn.macs == 400 * 2 * 256 + 800 * 3 + 18
    assert cnn.latency_us is not None
    assert 0 < cnn.latency_us["p50"] <= cnn.latency_us["p99"]


def test_the_same_policy_plays_the_same_episodes(teacher: NetworkPolicy) -> None:
    first = play(CARTPOLE, teacher, 20, seed=4, judge=teacher)
    again = play(CARTPOLE, teacher, 20, seed=4)
    np.testing.assert_array_equal(first.returns, again.returns)
    assert first.agreed == first.compared == first.lengths.sum()
    assert first.returns.mean() > 3 * play(CARTPOLE, None, 20, seed=4).returns.mean()
    np.testing.assert_array_equal(first.returns, first.lengths)  # CartPole pays 1 a step
    assert [len(actions) for actions in first.actions] == first.lengths.tolist()
    # sum_k 0.9^k over n steps
    short = play(CARTPOLE, teacher, 3, seed=4, gamma=0.9)
    np.testing.assert_allclose(short.discounted, (1 - 0.9**short.lengths) / 0.1)


def test_episodes_are_those_of_gymnasium_itself(teacher: NetworkPolicy) -> None:
    import gymnasium

    from rldistill.envs.seeding import episode_seed

    played = play(EnvConfig("CartPole-v1"), teacher, 3, seed=9)
    for episode in range(3):
        env = gymnasium.make("CartPole-v1")
        obs, _ = env.reset(seed=episode_seed(9, "evaluate", 0, 0, 0, episode))
        total, over = 0.0, False
        while not over:
            action = int(teacher(torch.from_numpy(obs)[None])[0].mode())
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        assert played.returns[episode] == total
