from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch

from rldistill.envs.single import EnvConfig, spec_from_env
from rldistill.evaluate.compare import CompareConfig, compare_teachers, recommend
from rldistill.students import Mlp
from rldistill.students.network import NetworkPolicy
from rldistill.teachers.actor import Actor
from rldistill.types import Wrapper

from ..conftest import CARTPOLE


def row(mean: float, teachability: float | None, macs: int) -> dict[str, Any]:
    return {"mean": mean, "teachability": teachability, "macs": macs}


def test_the_best_teacher_is_the_one_that_teaches_best() -> None:
    take, why = recommend({"a": row(9, 0.7, 10), "b": row(8, 0.9, 10)})
    assert take == "b"
    assert "a plays better itself" in why


def test_of_two_that_teach_alike_the_cheaper_is_taken() -> None:
    take, why = recommend({"a": row(9, 0.91, 10), "b": row(8, 0.90, 5)})
    assert take == "b"
    assert "cheaper" in why


def test_nothing_is_made_of_teachers_no_better_than_random() -> None:
    assert "no teacher is better" in recommend({"a": row(9, None, 1)})[1]


def test_a_good_teacher_is_told_from_a_poor_one(teacher: NetworkPolicy) -> None:
    poor = Mlp((4,)).build(teacher.spec).eval()
    found = compare_teachers({"poor": poor, "good": teacher}, CARTPOLE, CompareConfig(5, 800, 10))
    assert found["take"] in ("good", "ensemble")
    assert set(found["teachers"]) == {"poor", "good", "ensemble"}
    assert 0 <= found["agreement"]["poor / good"] <= 1
    assert found["teachers"]["good"]["teachability"] > found["teachers"]["poor"]["teachability"]


def test_teachers_of_all_kinds_are_compared(teacher: NetworkPolicy) -> None:
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
    found = compare_teachers(line_up, CARTPOLE, CompareConfig(2, 400, 2))
    assert set(found["teachers"]) == set(line_up)
    assert list(found["agreement"]) == ["values / logits"]
    assert "do not fit" in found["no_ensemble"]


def test_agreement_by_hand(teacher: NetworkPolicy) -> None:
    turned = copy.deepcopy(teacher)
    with torch.no_grad():
        turned.output.weight.copy_(teacher.output.weight.flip(0))
    found = compare_teachers({"a": teacher, "b": turned}, CARTPOLE, CompareConfig(1, 200, 1, ensemble=False))
    assert found["agreement"]["a / b"] == 0.0
