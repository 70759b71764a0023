"""Configuration classes: Python code and run files accept the same values."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import MinLen
from pydantic import ValidationError

from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError
from rldistill.core.fields import PYTHON_ONLY, Positive, explain, read, run_file_keys, validated_dataclass
from rldistill.core.schedules import SCHEDULES
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.distillation.config import DistillConfig
from rldistill.evaluation.config import CompareConfig, EvaluateConfig, RobustnessConfig
from rldistill.losses import LOSSES, ForwardKL
from rldistill.losses.objective import Term
from rldistill.policies.actor_critic import Actor
from rldistill.recipes import RECIPES
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.search.config import SearchConfig
from rldistill.students import STUDENTS
from rldistill.students.features import FEATURES
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble, TeamTeacher
from rldistill.teachers.training.config import TrainConfig

CLASSES: list[Any] = [
    CollectConfig, DistillConfig, EvaluateConfig, RobustnessConfig, CompareConfig, PPOConfig, DQNConfig, SearchConfig,
    TrainConfig, EnvConfig, Wrapper, Views, SavedTeacher, TeacherEnsemble, TeamTeacher, Actor,
    *SCHEDULES.values(), *LOSSES.values(), *STUDENTS.values(), *FEATURES.values(), *RECIPES.values(),
]  # fmt: skip
VALUES = (0, -1, 1, 0.5, math.nan, math.inf, "3", "", True, None, 10**15, [], [0], [1], {}, {"a": 1})
REQUIRED = {
    "id": "CartPole-v1", "name": "FrameSkip", "path": "a.zip", "model": "a.keras", "steps_per_round": 9,
    "first_steps": 9, "regions": [["ball", 0, 9, 0, 9]], "ensemble": ["a.zip"], "agents": {"all": "a.zip"},
}  # fmt: skip


def required(cls: Any) -> dict[str, Any]:
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    names = [field.name for field in dataclasses.fields(cls) if (field.default, field.default_factory) == missing]
    return {name: REQUIRED[name] for name in names}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_python_and_run_files_accept_the_same_values(cls: Any) -> None:
    for name in run_file_keys(cls):
        for value in VALUES:
            fields = required(cls) | {name: value}
            try:
                in_file, problem = read(cls, fields), None
            except ValidationError as error:
                in_file, problem = None, explain(error.errors()[0])
            if problem is None:
                assert cls(**fields) == in_file
                continue
            with pytest.raises(ConfigError) as caught:
                cls(**fields)
            assert str(caught.value) == f"{cls.__name__}.{problem}"
            assert re.split(r"[.:]", problem)[0] in run_file_keys(cls), (value, problem)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_defaults_are_valid(cls: Any) -> None:
    default = cls(**required(cls))
    fields = {name: getattr(default, name) for name in run_file_keys(cls)}
    assert read(cls, fields) == default


@pytest.mark.parametrize(
    ("make", "valid"),
    [
        (lambda: DQNConfig(offline_steps=0, learning_starts=0), True),
        (lambda: DQNConfig(offline_steps=-3), False),
        (lambda: PPOConfig(critic_warmup=-1), False),
        (lambda: PPOConfig(value_coef=-1), False),
        (lambda: PPOConfig(entropy_coef=0), True),
    ],
)
def test_zero_is_accepted_where_it_has_a_meaning(make: Any, valid: bool) -> None:
    if valid:
        assert make()
    else:
        with pytest.raises(ConfigError, match="expected at least 0"):
            make()


@validated_dataclass
class Example:
    count: Positive = 1
    names: Annotated[tuple[str, ...], MinLen(1)] = ("a",)
    hidden: Annotated[int, PYTHON_ONLY] = 0

    def __post_init__(self) -> None:
        if self.count > len(self.names) + 5:
            raise ConfigError("count: expected at most 5 more than names")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "Example.count: found 0, expected at least 1"),
        ((1, ["a", 2]), {}, "Example.names.1: found 2, expected text"),
        ((), {"cuont": 3}, "Example.cuont: unknown key. Did you mean 'count'? Known here: count, names, hidden"),
        ((9,), {}, "Example.count: expected at most 5 more than names"),
    ],
)
def test_errors_name_the_class_and_the_field(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Example(*arguments, **options)
    assert str(caught.value) == message


def test_fields_for_python_only_are_unknown_in_run_files() -> None:
    assert Example(hidden=3).hidden == 3
    assert dataclasses.replace(Example(hidden=3), count=2) == Example(2, hidden=3)
    with pytest.raises(ValidationError) as caught:
        read(Example, {"hidden": 3})
    assert explain(caught.value.errors()[0]) == "hidden: unknown key. Known here: count, names"


def test_only_run_files_may_name_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "code_that_runs.py").write_text("raise RuntimeError('imported')")
    for make in (lambda: Term("code_that_runs:Loss"), lambda: STUDENTS["mlp"](features="code_that_runs:F")):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="only a run file may name code"):
            make()
    assert Term("forward_kl") == Term(ForwardKL())  # type: ignore[arg-type]
