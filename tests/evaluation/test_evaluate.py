"""Evaluation of students that are worse than their teacher, as good, or undecided."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import Episodes, PlayConfig, PolicyRuns, play
from rldistill.evaluation.evaluate import RunContext, evaluate
from rldistill.evaluation.non_inferiority import RISK, least_episodes
from rldistill.evaluation.results import Evaluation, verdict
from rldistill.evaluation.statistics import Estimate
from rldistill.io.atomic import read_json
from rldistill.io.execution import Execution
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Linear
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE, Reports


def poor(seed: int = 1) -> NetworkPolicy:
    torch.manual_seed(seed)
    return Linear().build(spec_from_env(CARTPOLE)).eval()


def leaning(angle: float) -> FunctionPolicy:
    return FunctionPolicy(lambda obs: int(obs[2] + obs[3] > angle), spec_from_env(CARTPOLE))


def test_the_fields_of_an_evaluation(teacher: NetworkPolicy, tmp_path: Path) -> None:
    found = evaluate(
        CARTPOLE, {"teacher": teacher, "poor": poor()}, EvaluateConfig(12, videos=False), tmp_path
    ).to_dict()
    student, best, random = (found["policies"][name] for name in ("poor", "teacher", "random"))
    returns = np.array(student["runs"][0]["returns"])
    assert student["mean"]["value"] == pytest.approx(returns.mean())
    assert student["median"]["value"] == pytest.approx(np.median(returns))
    for key in ("mean", "median", "iqm", "optimality_gap"):
        low, high = student[key]["ci95"]
        assert low <= student[key]["value"] <= high
    theirs = np.array(best["runs"][0]["returns"])
    wins = (returns > theirs).mean() + 0.5 * (returns == theirs).mean()
    assert student["probability_of_improvement"]["value"] == pytest.approx(wins)
    assert best["probability_of_improvement"] is None
    assert random["non_inferiority"] is best["non_inferiority"] is None
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
    answer = student["non_inferiority"]
    expected = returns.mean() - 0.95 * theirs.mean() - 0.05 * random["mean"]["value"]
    assert answer["estimate"] == pytest.approx(expected)
    assert (answer["decision"], answer["margin"], answer["analysis"]) == ("no", 0.05, 1)
    assert answer["episodes"] == min(entry["distinct_episodes"] for entry in found["policies"].values())


def test_latency_is_measured_in_a_state_of_the_environment(teacher: NetworkPolicy, tmp_path: Path) -> None:
    def plan(obs: NDArray[Any]) -> int:
        return int(1 / float(obs[2]) > 0)  # fails with an observation of zeros

    planner = FunctionPolicy(plan, spec_from_env(CARTPOLE))
    results = evaluate(CARTPOLE, {"teacher": planner, "copy": teacher}, EvaluateConfig(2, videos=False), tmp_path)
    assert results.policies["teacher"].latency_us is not None


def test_too_few_episodes_and_seeds_are_warnings(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = EvaluateConfig(9, videos=False)
    found = evaluate(CARTPOLE, {"teacher": teacher, "same": teacher}, config, tmp_path).to_dict()
    assert [*found["warnings"]] == ["few-episodes", "few-seeds"]
    episodes, seeds = found["warnings"].values()
    assert "fewer than 10" in episodes
    assert "same has 9" in episodes
    assert seeds.endswith("same has 1")
    several = {"teacher": teacher, "different": [leaning(angle) for angle in (0.0, 0.1, 0.2)]}
    assert evaluate(CARTPOLE, several, EvaluateConfig(10, videos=False), tmp_path).warnings == {}


def test_sequential_evaluation_stops_after_the_decision(
    teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def recorded(env: Any, policy: Any, episodes: int, config: PlayConfig, **options: Any) -> Episodes:
        asked.append((config.first, episodes))
        return play(env, policy, episodes, config, **options)

    # by its module's name: `rldistill.evaluate` is the function
    monkeypatch.setattr(sys.modules["rldistill.evaluation.match"], "play", recorded)
    config = EvaluateConfig(20, videos=False, sequential=True, max_episodes=100, margin=0.1)
    shown: list[tuple[int, int]] = []
    policies = {"teacher": PolicyRuns("teacher", {None: teacher}), "same": PolicyRuns("student", {0: teacher})}
    found = evaluate(
        CARTPOLE, policies, config, tmp_path, RunContext(), Reports(lambda *done: shown.append(done))
    ).to_dict()
    answer = found["policies"]["same"]["non_inferiority"]
    assert answer["decision"] == "yes"
    # 29 episodes at least show no failure in 10 at a risk of 5%
    assert 40 <= found["episodes"] == answer["episodes"] == 20 * answer["analysis"] < 100
    assert asked == [(20 * look, 20) for look in range(answer["analysis"]) for _ in range(3)]
    assert answer["risk"] < 0.05
    assert shown[-1] == (3 * found["episodes"],) * 2
    whole = play(CARTPOLE, teacher, found["episodes"]).returns
    np.testing.assert_array_equal(found["policies"]["teacher"]["runs"][0]["returns"], whole)


def test_several_students_share_the_risk_of_a_false_yes(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = EvaluateConfig(60, videos=False)
    found = evaluate(CARTPOLE, {"teacher": teacher, "same": teacher, "again": teacher}, config, tmp_path).to_dict()[
        "policies"
    ]
    answers = [found[name]["non_inferiority"] for name in ("same", "again")]
    # 0.95^71 = 0.0262, 0.95^72 = 0.0249: half of 5% takes 72 episodes
    assert [(answer["risk"], answer["decision"], answer["episodes_needed"]) for answer in answers] == [
        (0.025, "undecided", 12)
    ] * 2


def test_undecided_evaluation_ends_with_max_episodes(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = EvaluateConfig(4, videos=False, sequential=True, max_episodes=10)
    found = evaluate(CARTPOLE, {"teacher": teacher, "same": teacher}, config, tmp_path).to_dict()
    answer = found["policies"]["same"]["non_inferiority"]
    assert (answer["decision"], answer["analysis"], found["episodes"]) == ("undecided", 3, 10)
    assert answer["episodes_needed"] >= 59 - 10


def test_teacher_no_better_than_random_has_no_decision(tmp_path: Path) -> None:
    falls = poor()
    with torch.no_grad():
        for parameter in falls.parameters():
            parameter.zero_()
    found = evaluate(CARTPOLE, {"teacher": falls, "same": falls}, EvaluateConfig(10, videos=False), tmp_path).to_dict()
    same = found["policies"]["same"]
    assert same["normalized"] is same["optimality_gap"] is same["non_inferiority"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.0}, "margin: found 0.0, expected"),
        ({"sequential": True, "max_episodes": 20}, "max_episodes: expected at least evaluate.episodes, 100"),
    ],
)
def test_invalid_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(**options)


def test_policies_without_one_teacher_or_with_a_reserved_name_are_refused(
    teacher: NetworkPolicy, tmp_path: Path
) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"teacher": teacher, "random": teacher}, "policies: 'random' is a reserved name"),
        ({"student": teacher}, "policies: there is no teacher"),
        ({"teacher": [teacher, teacher]}, "policies.teacher: expected one policy, found several"),
    ]
    for policies, message in refused:
        with pytest.raises(ConfigError, match=message):
            evaluate(CARTPOLE, policies, EvaluateConfig(2, videos=False), tmp_path)


def test_result_is_received_before_the_videos(
    teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    monkeypatch.setattr(
        import_module("rldistill.evaluation.evaluate"), "record_videos", lambda *_: events.append("videos")
    )
    context = RunContext(receive=events.append)
    found = evaluate(CARTPOLE, {"teacher": teacher}, EvaluateConfig(2), tmp_path, context)
    assert events == [found, "videos"]


def test_result_prints_as_table_and_is_read_back(teacher: NetworkPolicy, tmp_path: Path) -> None:
    policies = {"teacher": teacher, "poor": poor(), "pair": [poor(0), poor(1)]}
    found = evaluate(CARTPOLE, policies, EvaluateConfig(8, videos=False), tmp_path, RunContext(3))
    text = str(found)
    for word in ("CartPole-v1, 8 episodes", "mean return", "agreement", "poor", "pair", "random", "warning: few-seeds"):
        assert word in text
    assert repr(found) == text
    assert [len(entry.runs) for entry in found.students.values()] == [1, 2]
    again = Evaluation.read(tmp_path / "evaluation.json")
    assert again == found
    assert again.to_dict() == read_json(tmp_path / "evaluation.json")


def test_identical_training_seeds_count_as_one(teacher: NetworkPolicy, tmp_path: Path) -> None:
    found = evaluate(CARTPOLE, {"teacher": teacher, "same": [teacher] * 3}, EvaluateConfig(10, videos=False), tmp_path)
    assert found.policies["same"].distinct_runs == 1
    assert [*found.warnings] == ["few-seeds", "same-seeds"]
    assert "same has 1" in found.warnings["few-seeds"]
    assert "count as one: same" in found.warnings["same-seeds"]


def test_too_few_episodes_are_not_a_failure(teacher: NetworkPolicy, tmp_path: Path) -> None:
    """A yes takes 59 episodes: with fewer, the verdict does not claim that nothing was learned."""
    found = evaluate(CARTPOLE, {"teacher": teacher, "same": teacher}, EvaluateConfig(6, videos=False), tmp_path)
    answer = found.policies["same"].non_inferiority
    assert answer is not None
    assert (answer.decision, answer.min_episodes) == ("undecided", 59)
    assert "a yes takes at least 59 episodes" in verdict(found)
    unclear = found.policies["same"].model_copy(update={"normalized": Estimate(1.0, (-0.1, 1.2))})
    found = found.model_copy(update={"policies": {**found.policies, "same": unclear}})
    assert verdict(found).startswith("Too few episodes to decide: after 6")
    assert verdict(found).endswith("Evaluate at least 59 episodes.")


def test_default_number_of_episodes_can_decide() -> None:
    assert EvaluateConfig().episodes >= least_episodes(0.05, RISK / 8)


def test_evaluation_has_its_own_arguments_of_the_environment(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = EvaluateConfig(2, videos=False, env_kwargs={"max_episode_steps": 7})
    found = evaluate(CARTPOLE, {"teacher": teacher}, config, tmp_path)
    assert found.env_kwargs == {"max_episode_steps": 7}
    assert found.policies["teacher"].mean.value == 7
    with pytest.raises(ConfigError, match=r"^evaluate.env_kwargs: .*lid"):
        evaluate(CARTPOLE, {"teacher": teacher}, EvaluateConfig(2, env_kwargs={"lid": 1}), tmp_path)


def test_arguments_that_change_the_spaces_are_refused(tmp_path: Path) -> None:
    env = EnvConfig("FrozenLake-v1", {"desc": ["SF", "FG"]})
    larger = EvaluateConfig(2, env_kwargs={"desc": ["SFF", "FFG"]})
    with pytest.raises(ConfigError, match=r"^evaluate.env_kwargs: .* other observations or actions"):
        evaluate(env, {"teacher": Linear().build(spec_from_env(env))}, larger, tmp_path)


def test_a_decided_student_plays_no_more_while_others_go_on(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = EvaluateConfig(20, videos=False, sequential=True, max_episodes=100)
    policies = {"teacher": teacher, "weak": poor(), "same": teacher}
    found = {
        workers: evaluate(CARTPOLE, policies, config, tmp_path / str(workers), execution=Execution(workers=workers))
        for workers in (1, 2)
    }
    one, two = found.values()
    weak, same = one.policies["weak"], one.policies["same"]
    decisions = [student.non_inferiority and student.non_inferiority.decision for student in (weak, same)]
    assert (decisions, same.episodes) == (["no", "yes"], one.episodes)
    assert weak.episodes < one.episodes <= 100
    assert (
        str(one).splitlines()[0].strip()
        == f"CartPole-v1, {one.episodes} episodes (weak {weak.episodes}: decided earlier)"
    )
    for name in policies:
        assert one.policies[name].returns == two.policies[name].returns
        assert one.policies[name].non_inferiority == two.policies[name].non_inferiority
    # The score compares the episodes that both have played.
    reference = np.array(one.policies["random"].returns[: weak.episodes]).mean()
    lead = np.array(one.teacher.returns[: weak.episodes]).mean() - reference
    assert weak.normalized is not None
    assert weak.normalized.value == pytest.approx((np.array(weak.returns).mean() - reference) / lead)
    assert Evaluation.read(tmp_path / "1" / "evaluation.json") == one
