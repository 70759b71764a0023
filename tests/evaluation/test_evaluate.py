"""What `evaluation.json` says of policies that are worse than their teacher, as good, or not to be told from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import Episodes, play
from rldistill.evaluation.evaluate import PolicyRuns, evaluate
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Linear

from ..conftest import CARTPOLE, Reports


def entrants(teacher: Policy, **students: Policy) -> dict[str, PolicyRuns]:
    players = {name: PolicyRuns("student", {0: student}, 10) for name, student in students.items()}
    return {
        "teacher": PolicyRuns("teacher", {None: teacher}, 0),
        **players,
        "random": PolicyRuns("random", {None: None}, 0),
    }


def poor() -> NetworkPolicy:
    torch.manual_seed(1)
    return Linear().build(spec_from_env(CARTPOLE)).eval()


def test_the_fields_of_an_evaluation(teacher: NetworkPolicy, tmp_path: Path) -> None:
    found = evaluate(CARTPOLE, entrants(teacher, poor=poor()), EvaluateConfig(12, videos=False), tmp_path)
    student, best, random = (found["policies"][name] for name in ("poor", "teacher", "random"))
    returns = np.array(student["runs"][0]["returns"])
    assert student["mean"] == pytest.approx(returns.mean())
    assert student["median"] == pytest.approx(np.median(returns))
    for key in ("median_ci95", "iqm_ci95", "optimality_gap_ci95"):
        low, high = student[key]
        assert low <= student[key.removesuffix("_ci95")] <= high
    theirs = np.array(best["runs"][0]["returns"])
    wins = (returns > theirs).mean() + 0.5 * (returns == theirs).mean()
    assert student["probability_of_improvement"]["estimate"] == pytest.approx(wins)
    assert best["probability_of_improvement"] is None
    assert random["non_inferior"] is best["non_inferior"] is None
    assert student["success_rate"] is None
    # every return is above the lowest but the lowest itself, and none above the highest
    assert (found["profile_at"][0], found["profile_at"][-1]) == (
        min(min(run["returns"]) for entry in found["policies"].values() for run in entry["runs"]),
        max(max(run["returns"]) for entry in found["policies"].values() for run in entry["runs"]),
    )
    for entry in found["policies"].values():
        profile = entry["profile"]
        assert profile["share"] == sorted(profile["share"], reverse=True)
        assert profile["share"][-1] == 0
        assert all(a <= b <= c for a, b, c in zip(*(profile[key] for key in ("low", "share", "high")), strict=True))
    answer = student["non_inferior"]
    expected = returns.mean() - 0.95 * theirs.mean() - 0.05 * random["mean"]
    assert answer["estimate"] == pytest.approx(expected)
    assert (answer["decision"], answer["margin"], answer["look"]) == ("no", 0.05, 1)
    assert answer["episodes"] == min(entry["distinct_episodes"] for entry in found["policies"].values())


def test_too_little_to_say_anything_is_said(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = EvaluateConfig(9, videos=False)
    found = evaluate(CARTPOLE, entrants(teacher, same=teacher), config, tmp_path)
    episodes, seeds = found["warnings"]
    assert (episodes["name"], seeds["name"]) == ("few-episodes", "few-seeds")
    assert "fewer than 10" in episodes["text"]
    assert "same has 9" in episodes["text"]
    assert seeds["text"].endswith("same has 1")
    several = entrants(teacher) | {"same": PolicyRuns("student", dict.fromkeys((0, 1, 2), teacher), 0)}
    assert evaluate(CARTPOLE, several, EvaluateConfig(10, videos=False), tmp_path)["warnings"] == []


def test_it_is_played_until_decided(teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def noted(*args: Any, first: int, **options: Any) -> Episodes:
        asked.append((first, args[2]))
        return play(*args, first=first, **options)

    # by its module's name: `rldistill.evaluate` is the function
    monkeypatch.setattr(sys.modules["rldistill.evaluation.evaluate"], "play", noted)
    config = EvaluateConfig(20, videos=False, sequential=True, max_episodes=100, margin=0.1)
    shown: list[tuple[int, int]] = []
    found = evaluate(
        CARTPOLE, entrants(teacher, same=teacher), config, tmp_path, progress=Reports(lambda *done: shown.append(done))
    )
    answer = found["policies"]["same"]["non_inferior"]
    assert answer["decision"] == "yes"
    # 29 episodes at least show no failure in 10 at a risk of 5%
    assert 40 <= found["episodes"] == answer["episodes"] == 20 * answer["look"] < 100
    assert asked == [(20 * look, 20) for look in range(answer["look"]) for _ in range(3)]
    assert answer["risk"] < 0.05
    assert shown[-1] == (3 * found["episodes"],) * 2
    whole = play(CARTPOLE, teacher, found["episodes"]).returns
    np.testing.assert_array_equal(found["policies"]["teacher"]["runs"][0]["returns"], whole)


def test_several_students_share_the_risk_of_a_false_yes(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = EvaluateConfig(60, videos=False)
    found = evaluate(CARTPOLE, entrants(teacher, same=teacher, again=teacher), config, tmp_path)["policies"]
    answers = [found[name]["non_inferior"] for name in ("same", "again")]
    # 0.95^71 = 0.0262, 0.95^72 = 0.0249: half of 5% takes 72 episodes
    assert [(answer["risk"], answer["decision"], answer["episodes_needed"]) for answer in answers] == [
        (0.025, "undecided", 12)
    ] * 2


def test_what_is_never_decided_ends_with_the_most_episodes(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = EvaluateConfig(4, videos=False, sequential=True, max_episodes=10)
    found = evaluate(CARTPOLE, entrants(teacher, same=teacher), config, tmp_path)
    answer = found["policies"]["same"]["non_inferior"]
    assert (answer["decision"], answer["look"], found["episodes"]) == ("undecided", 3, 10)
    assert answer["episodes_needed"] >= 59 - 10


def test_a_teacher_no_better_than_random_leaves_nothing_to_keep(tmp_path: Path) -> None:
    falls = poor()
    with torch.no_grad():
        for parameter in falls.parameters():
            parameter.zero_()
    found = evaluate(CARTPOLE, entrants(falls, same=falls), EvaluateConfig(10, videos=False), tmp_path)
    same = found["policies"]["same"]
    assert same["normalised"] is same["optimality_gap"] is same["optimality_gap_ci95"] is same["non_inferior"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.0}, "evaluate.margin: expected a share between 0 and 1"),
        ({"sequential": True, "max_episodes": 20}, "evaluate.max_episodes: expected at least evaluate.episodes, 30"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(**options)


def test_without_teacher_or_random_play_there_is_no_score(teacher: NetworkPolicy, tmp_path: Path) -> None:
    players = entrants(teacher)
    for name in ("teacher", "random"):
        others = {who: entrant for who, entrant in players.items() if who != name}
        with pytest.raises(ConfigError, match=f"entrants: there is no '{name}'"):
            evaluate(CARTPOLE, others, EvaluateConfig(2, videos=False), tmp_path)
