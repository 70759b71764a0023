from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.core.heads import HeadKind
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.compare_teachers import TeacherScore, compare_teachers, recommend
from rldistill.evaluation.config import CompareConfig
from rldistill.io.execution import Execution
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.reporting.page import write_comparison
from rldistill.students import Mlp
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE, Reports


def row(mean: float, teachability: float | None, macs: int | None) -> TeacherScore:
    unknown = dict.fromkeys(("entropy", "action_gap", "parameters", "latency_us"))
    score = {"returns": [mean], "mean": {"value": mean, "ci95": None}, "macs": macs, "probe_mean": 0.0}
    return TeacherScore.parse({**unknown, **score, "teachability": teachability}, Path("x.json"))


def test_the_best_teacher_is_the_one_that_teaches_best() -> None:
    take, why = recommend({"a": row(9, 0.7, 10), "b": row(8, 0.9, 10)})
    assert take == "b"
    assert "a plays better itself" in why


def test_of_two_that_teach_alike_the_cheaper_is_taken() -> None:
    take, why = recommend({"a": row(9, 0.91, 10), "b": row(8, 0.90, 5)})
    assert take == "b"
    assert "cheaper" in why


def test_unknown_cost_wins_no_tie() -> None:
    take, why = recommend({"a": row(9, 0.91, 10), "unknown": row(9, 0.90, None)})
    assert (take, "cheaper" in why) == ("a", False)
    take, why = recommend({"unknown": row(9, 0.91, None), "a": row(9, 0.90, 10)})
    assert (take, "cheaper" in why) == ("unknown", False)
    assert recommend({"top": row(9, 0.92, 10), "unknown": row(9, 0.91, None), "b": row(9, 0.905, 5)})[0] == "b"
    take, why = recommend({"b": row(9, 0.90, 10), "a": row(9, 0.91, 10)})
    assert (take, "cheaper" in why) == ("a", False)


def test_where_costs_say_nothing_the_stronger_of_two_that_teach_alike_is_taken() -> None:
    for macs in (None, 10):
        take, why = recommend({"a": row(8, 0.91, macs), "b": row(9, 0.90, macs)})
        assert take == "b"
        assert why.endswith("within 0.02 of a's 0.910, and it plays better itself (9.0)")
    assert recommend({"a": row(8, 0.91, 10), "b": row(9, 0.90, 20)})[0] == "a"


def test_the_reason_does_not_contradict_itself() -> None:
    take, why = recommend({"big": row(10, 0.99, 100), "small": row(9, 0.98, 10)})
    assert take == "small"
    assert "it is cheaper to run" in why
    assert "big plays better itself (10.0 to 9.0)" in why
    assert "less well" not in why
    assert "teaches less well (0.700)" in recommend({"a": row(9, 0.7, 10), "b": row(8, 0.9, 10)})[1]
    assert "better itself" not in recommend({"a": row(9, 0.7, 10), "b": row(9, 0.9, 10)})[1]


def test_unknown_costs_are_shown_as_missing(teacher: NetworkPolicy, tmp_path: Path) -> None:
    lean = FunctionPolicy(lean_left, spec_from_env(CARTPOLE))
    found = compare_teachers(CARTPOLE, {"function": lean, "network": teacher}, CompareConfig(1, 200, 1))
    macs = {name: score.macs for name, score in found.teachers.items()}
    assert macs == {"function": None, "network": 4 * 16 + 16 * 2, "ensemble": None}
    shown = {cells[0].text: (cells[5].text, cells[6].text) for cells in found.rows}
    assert shown["function"] == ("–", "–")
    write_comparison(found, tmp_path / "page.html")


def lean_left(obs: np.ndarray[Any, Any]) -> int:
    return int(obs[2] > 0.05)


def test_no_preference_among_teachers_no_better_than_random() -> None:
    assert "no teacher is better" in recommend({"a": row(9, None, 1)})[1]


def test_good_teacher_is_preferred_to_a_poor_one(teacher: NetworkPolicy) -> None:
    torch.manual_seed(0)
    poor = Mlp((4,)).build(teacher.spec).eval()
    found = compare_teachers(CARTPOLE, {"poor": poor, "good": teacher}, CompareConfig(5, 800, 10))
    assert found.take in ("good", "ensemble")
    assert set(found.teachers) == {"poor", "good", "ensemble"}
    assert found.teachers["ensemble"].macs == (4 * 4 + 4 * 2) + (4 * 16 + 16 * 2)
    assert 0 <= found.agreement["poor / good"] <= 1
    assert (found.teachers["good"].teachability or 0) > (found.teachers["poor"].teachability or 0)


def test_teachers_of_all_kinds_are_compared(teacher: NetworkPolicy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = spec_from_env(CARTPOLE)
    timed = EnvConfig("CartPole-v1", wrappers=(Wrapper("TimeFeature"),))
    other = dataclasses.replace(spec_from_env(timed), view=timed.wrappers)
    line_up = {
        "values": teacher,
        "logits": Mlp((4,)).build(spec).eval(),
        "recurrent": Actor(lstm=(3, 1)).build(spec).eval(),
        "timed": Mlp((4,)).build(other).eval(),
    }
    found = compare_teachers(CARTPOLE, line_up, CompareConfig(2, 400, 2))
    assert set(found.teachers) == set(line_up)
    assert [pair for pair, value in found.agreement.items() if isinstance(value, float)] == ["values / logits"]
    assert found.agreement["values / recurrent"] == "one is recurrent, so single states cannot be compared"
    assert found.agreement["logits / timed"] == "their observations differ"
    assert "do not fit" in (found.no_ensemble or "")
    write_comparison(found, tmp_path / "page.html")
    for said in ((tmp_path / "page.html").read_text(), str(found)):
        assert re.search("values / recurrent.*one is recurrent", said)
        assert re.search("logits / timed.*their observations differ", said)


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(teacher: NetworkPolicy) -> None:
    torch.manual_seed(0)
    teachers = {"a": teacher, "b": Mlp((4,)).build(teacher.spec).eval()}
    found, shown = [], list[tuple[int, ...]]()
    progress = Reports(lambda *done: shown.append(done))
    for workers in (1, 2):
        execution = Execution(workers=workers)
        result = compare_teachers(CARTPOLE, teachers, CompareConfig(2, 400, 2), progress=progress, execution=execution)
        document = result.to_dict()
        for score in document["teachers"].values():
            del score["latency_us"]
        found.append(document)
        assert shown[-1] == (26, 26)  # random play, 4 sources of data, 3 + 4 probe students with 3 seeds
    assert found[0] == found[1]


def test_agreement_by_hand(teacher: NetworkPolicy) -> None:
    turned = copy.deepcopy(teacher)
    with torch.no_grad():
        turned.output.weight.copy_(teacher.output.weight.flip(0))
    found = compare_teachers(CARTPOLE, {"a": teacher, "b": turned}, CompareConfig(1, 200, 1, ensemble=False))
    assert found.agreement["a / b"] == 0.0


@pytest.mark.parametrize("kind", ["gaussian", "squashed_gaussian", "deterministic"])
def test_continuous_teachers_are_compared_with_their_ensemble(kind: HeadKind) -> None:
    """Their ensemble acts by the mean action, which has no KL."""
    pendulum = EnvConfig("Pendulum-v1", {"max_episode_steps": 20})
    spec = spec_from_env(pendulum)
    spec = dataclasses.replace(spec, head=spec.head.as_kind(kind))
    torch.manual_seed(0)
    teachers = {name: Mlp((4,)).build(spec).eval() for name in "ab"}
    found = compare_teachers(pendulum, teachers, CompareConfig(1, 200, 1))
    assert set(found.teachers) == {"a", "b", "ensemble"}
    assert found.no_ensemble is None
    assert not found.discrete
    assert "action RMSE a / b" in str(found)
