"""rliable (Agarwal 2021) as the oracle of the statistics, on the same matrices of runs and tasks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rldistill.evaluation.statistics import (
    Interval,
    Returns,
    Statistic,
    Values,
    estimate,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

PYTHON = Path(__file__).parents[2] / ".venv-rliable/bin/python"
STATISTICS: dict[str, Statistic] = {"mean": mean, "median": median, "iqm": iqm, "optimality_gap": optimality_gap}
THRESHOLDS = np.array([0.0, 0.5, 1.0, 2.0])

# An end is a 2.5% quantile of 2,000 draws: its deviation is sqrt(0.025 * 0.975 / 2000) / phi(1.96) = 0.060 of theirs, a
# difference of two has 0.085, and the interval is 3.92 deviations wide. Four of 0.085 are 0.087 of the width.
SLACK = 0.087

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="rliable needs pandas < 3: `make rliable` makes its venv")


@pytest.fixture(scope="module")
def matrices() -> dict[str, Any]:
    rng = np.random.default_rng(7)
    return {
        "ours": rng.gamma(2, 0.5, (12, 5)) * rng.uniform(0.5, 2, 5),
        "theirs": np.round(rng.gamma(2, 0.4, (9, 5)), 1),
        "one_task": rng.gamma(3, 0.3, (150, 1)),
        "thresholds": THRESHOLDS,
    }


@pytest.fixture(scope="module")
def theirs(matrices: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("rliable") / "matrices.npz"
    np.savez(path, **matrices)
    command = [str(PYTHON), "-W", "ignore", str(Path(__file__).with_name("rliable_oracle.py")), str(path)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def test_points_are_rliables(matrices: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, statistic in STATISTICS.items():
        assert float(statistic(matrices["ours"])) == pytest.approx(theirs["points"][name], rel=0, abs=1e-12)
    improvement = float(probability_of_improvement(matrices["ours"], matrices["theirs"]))
    assert improvement == pytest.approx(theirs["improvement"], rel=0, abs=1e-12)
    profile = performance_profile(matrices["ours"], THRESHOLDS)
    np.testing.assert_allclose(profile, theirs["profile"], rtol=0, atol=1e-12)


def bootstrap_within_tasks(statistic: Statistic, *scores: Returns) -> Values:
    """Return 2,000 values of scores `[runs, tasks]` with runs resampled within each task, as in rliable."""
    rng = np.random.default_rng(0)
    draws = (
        [score[rng.integers(0, len(score), score.shape), np.arange(score.shape[1])] for score in scores]
        for _ in range(2_000)
    )
    return np.stack([statistic(*draw) for draw in draws])


def percentile_interval(draws: Values) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def same_ends(found: Interval, expected: Any, slack: float = SLACK) -> None:
    (low,), (high,) = expected
    np.testing.assert_allclose(found, [low, high], rtol=0, atol=slack * (high - low))


def test_intervals_within_tasks_are_rliables(matrices: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, statistic in STATISTICS.items():
        same_ends(percentile_interval(bootstrap_within_tasks(statistic, matrices["ours"])), theirs["ends"][name])
    both = matrices["ours"], matrices["theirs"]
    # of which rliable, slow at this, made 400 draws: sqrt((1 + 5) / 2) times the slack
    improvement = percentile_interval(bootstrap_within_tasks(probability_of_improvement, *both))
    same_ends(improvement, theirs["improvement_ends"], SLACK * 3**0.5)
    profiles = bootstrap_within_tasks(lambda scores: performance_profile(scores, THRESHOLDS), matrices["ours"])
    low, high = np.percentile(profiles, [2.5, 97.5], axis=0)
    # steps of 1/60 on top of the bootstrap's own error
    np.testing.assert_allclose(low, theirs["profile_ends"][0], atol=1.01 / 60)
    np.testing.assert_allclose(high, theirs["profile_ends"][1], atol=1.01 / 60)


def test_intervals_over_episodes_are_rliables_bca(matrices: dict[str, Any], theirs: dict[str, Any]) -> None:
    # Episodes are rliable's runs of a single task, of which its median is the mean. Of 150, Student's correction makes
    # an interval 1% wider.
    for name in ("mean", "iqm", "optimality_gap"):
        found = estimate(STATISTICS[name], matrices["one_task"].T).ci95
        assert found is not None
        same_ends(found, theirs["bca_ends"][name])
