"""Run files with text, numbers and depths that no file of this program could store are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.run.config import load_run

RUN = {"env": {"id": "CartPole-v1"}, "teacher": "x.zip", "students": {"a": "linear"}}
DIGITS = "9" * 5_000
TEXTS = {
    "JSON within JSON": '{"name": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "mappings within mappings": '{"env": ' + '{"a":' * 900 + "1" + "}" * 900 + "}",
    "lists that never end": "name: " + "[" * 100_000,
    "lists in one line": "- " * 5_000 + "a",
    "lone surrogate as a key": '{"\\ud800": 1}',
    "lone surrogate as a name": json.dumps(RUN | {"name": "\ud800"}),
    "lone surrogate as a student": json.dumps(RUN | {"students": {"\udfff": "linear"}}),
    "lone surrogate in arguments": json.dumps(RUN | {"env": {"id": "CartPole-v1", "kwargs": {"a": ["\ud800"]}}}),
    "NaN in arguments": yaml.safe_dump(RUN | {"env": {"id": "CartPole-v1", "kwargs": {"a": float("nan")}}}),
    "infinity in arguments": yaml.safe_dump(RUN | {"env": {"id": "CartPole-v1", "kwargs": {"a": [float("inf")]}}}),
    "NaN for a count": yaml.safe_dump(RUN | {"collect": {"steps": float("nan")}}),
    "infinite rate": yaml.safe_dump(RUN | {"distill": {"learning_rate": float("inf")}}),
    "huge count": f"{yaml.safe_dump(RUN)}collect: {{steps: {DIGITS}}}",
    "huge rate": f"{yaml.safe_dump(RUN)}distill: {{learning_rate: {DIGITS[:400]}}}",
    "huge hexadecimal number": f"{yaml.safe_dump(RUN)}seed: 0x{DIGITS}",
    "huge width": yaml.safe_dump(RUN | {"students": {"a": {"type": "mlp", "hidden": [10**30]}}}),
    "NaN as a key": f"{yaml.safe_dump(RUN)}.nan: 1",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_value_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml: ") as error:
        load_run(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("value", [float("nan"), [float("-inf")], {"a": "\ud800"}, object(), {1, 2}, lambda obs: obs])
def test_arguments_that_no_file_could_store_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"EnvConfig\.kwargs: .*expected text, finite numbers.*module:function"):
        EnvConfig("CartPole-v1", {"a": value})
    with pytest.raises(ConfigError, match=r"Wrapper\.kwargs: .*expected text, finite numbers"):
        Wrapper("TimeLimit", {"a": value})


@pytest.mark.parametrize("value", [10**400, (1, 2.5, None, True), "é", {"a": {"b": [1]}}])
def test_arguments_of_json_are_accepted(value: object) -> None:
    assert EnvConfig("CartPole-v1", {"a": value}).kwargs["a"] == value
