from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.schedules import Constant
from rldistill.core.schedules import Linear as LinearSchedule
from rldistill.core.spec import EnvConfig
from rldistill.distillation.config import DistillConfig
from rldistill.evaluation.config import EvaluateConfig
from rldistill.io.atomic import Mode, read_json, write_json
from rldistill.io.stage_inputs import StageInputs, canonical
from rldistill.losses import ForwardKL, ReverseKL
from rldistill.losses.objective import Term
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.search.config import SearchConfig
from rldistill.students import Mlp


def inputs(**values: Any) -> StageInputs:
    return StageInputs("distill", values)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (DistillConfig(num_threads=1, device="cpu"), DistillConfig(num_threads=2, device="cuda")),
        (PPOConfig(num_threads=1), PPOConfig(num_threads=2)),
        (CollectConfig(memory_gb=1.0), CollectConfig(memory_gb=2.0)),
        (EvaluateConfig(env_workers=1), EvaluateConfig(env_workers=4)),
        (DistillConfig(learning_rate=1), DistillConfig(learning_rate=1.0)),
        (EnvConfig("A", {"a": (1, 2), "b": np.float64(0.5)}), EnvConfig("A", {"b": 0.5, "a": [1.0, 2]})),
        ({"x": lambda: 0}, {"x": lambda: 0}),
        (float("inf"), float("inf")),
        (DQNConfig(), DQNConfig()),
    ],
)
def test_equal_values_and_settings_of_speed_are_the_same(tmp_path: Path, was: Any, now: Any) -> None:
    inputs(part=was).write(tmp_path)
    inputs(part=now).require_same(tmp_path)


@pytest.mark.parametrize(
    ("was", "now", "text"),
    [
        (DistillConfig(), DistillConfig(epochs=30), "part.epochs was 20, now it is 30"),
        (DistillConfig(epochs=30), DistillConfig(), "part.epochs was 30, now it is 20"),
        (
            DistillConfig(losses=(Term(ForwardKL(2.0)),)),
            DistillConfig(losses=(Term(ReverseKL()),)),
            "part.losses.0.loss was ForwardKL(temperature=2.0), now it is ReverseKL",
        ),
        (
            DistillConfig(losses=(Term(ForwardKL()),)),
            DistillConfig(losses=(Term(ForwardKL(), Constant(0.5)),)),
            "part.losses.0.weight.value was 1.0, now it is 0.5",
        ),
        (LinearSchedule(), LinearSchedule(until=0.5), "part.until was 1.0, now it is 0.5"),
        (Mlp((8,)), Mlp((8, 8)), "part.hidden was [8], now it is [8, 8]"),
        (EnvConfig("A", {"a": 1}), EnvConfig("A"), "part.kwargs.a was 1, now it is none"),
        (EnvConfig("A"), EnvConfig("B"), "part.id was A, now it is B"),
        (SearchConfig(0.05), SearchConfig(0.1), "part.margin was 0.05, now it is 0.1"),
        (None, 3, "part was none, now it is 3"),
        ({"removed": 1}, {}, "part.removed was 1, now it is none"),
    ],
)
def test_other_value_is_refused_with_both_values(tmp_path: Path, was: Any, now: Any, text: str) -> None:
    inputs(part=was).write(tmp_path)
    with pytest.raises(ConfigError) as error:
        inputs(part=now).require_same(tmp_path)
    advice = 'Go on with the old value, or start again with mode="overwrite" (`rldistill distill FILE --overwrite`).'
    assert str(error.value) == f"{tmp_path / 'inputs.json'}: {text}. {advice}"


def make_class(name: str, fields: list[Any], module: str = "mine") -> Any:
    made = make_dataclass(name, fields, frozen=True)
    made.__module__ = module  # from Python 3.12 on, not that of the namespace
    return made


def test_new_field_with_a_default_changes_nothing(tmp_path: Path) -> None:
    old = make_class("Part", [("size", int)])
    new = make_class("Part", [("size", int), ("bias", float, field(default=0.5))])
    inputs(part=old(3), parts=(old(1),)).write(tmp_path)
    inputs(part=new(3), parts=(new(1),)).require_same(tmp_path)
    with pytest.raises(ConfigError, match=r"part\.bias was 0\.5, now it is 0\.25\."):
        inputs(part=new(3, 0.25)).require_same(tmp_path)
    inputs(part=new(3, 0.25)).write(tmp_path)
    with pytest.raises(ConfigError, match=r"part\.bias was 0\.25, now it is none\."):
        inputs(part=old(3)).require_same(tmp_path)


def test_class_of_the_same_name_in_another_module_is_another(tmp_path: Path) -> None:
    one, two = make_class("Mlp", []), make_class("Mlp", [], module="yours")
    assert canonical(one()) == {"type": "mine:Mlp"}
    for was, now in ((one(), two()), (one(), Mlp()), (Mlp(), one())):
        inputs(part=was).write(tmp_path)
        with pytest.raises(ConfigError, match="part was"):
            inputs(part=now).require_same(tmp_path)


def test_fields_left_out_of_equality_are_not_compared() -> None:
    @dataclass(frozen=True)
    class Cached:
        size: int = 1
        cache: Any = field(default=None, compare=False)

    assert canonical(Cached(cache=object())) == canonical(Cached())


def test_nothing_is_written_before_the_check(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    first, second = inputs(part=Mlp((1,))), inputs(part=Mlp((2,)))
    assert not first.open_folder(folder, "policy.json", "new")
    assert not second.open_folder(folder, "policy.json", "new")  # the first made nothing
    write_json(folder / "policy.json", {})
    before = {path: path.read_bytes() for path in folder.iterdir()}
    modes: tuple[Mode, ...] = ("new", "resume")
    for mode in modes:
        with pytest.raises(ConfigError, match="was"):
            first.open_folder(folder, "policy.json", mode)
    with pytest.raises(ConfigError, match="--resume"):
        second.open_folder(folder, "policy.json", "new")
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    assert second.open_folder(folder, "policy.json", "resume")
    assert not first.open_folder(folder, "policy.json", "overwrite")
    assert read_json(folder / "inputs.json") == {"part": {"type": "Mlp", "hidden": [1]}}


def test_folder_without_inputs_is_not_compared_and_damage_is_named(tmp_path: Path) -> None:
    inputs(part=1).require_same(tmp_path)
    for text in ("3", "{", "[" * 100_000):
        (tmp_path / "inputs.json").write_text(text)
        with pytest.raises(CorruptArtifactError, match=r"^[^\n]*inputs\.json: [^\n]*$"):
            inputs(part=1).require_same(tmp_path)
