"""JSON Schema and documentation of run files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rldistill.run.config import load_run
from rldistill.run.schema import run_schema, run_tables

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))


def test_generated_files_are_current() -> None:
    """Regenerate with `rldistill schema > docs/run.schema.json` and `... --markdown > docs/configuration.md`."""
    assert json.loads((ROOT / "docs" / "run.schema.json").read_text()) == run_schema()
    assert (ROOT / "docs" / "configuration.md").read_text() == run_tables()


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_are_valid_and_name_the_schema(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(file.parent)
    first = file.read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (file.parent / first.partition("$schema=")[2]).resolve() == ROOT / "docs" / "run.schema.json"
    assert load_run(file, environment={}).env.id


def test_every_setting_has_a_type_and_a_description() -> None:
    schema = run_schema()
    for name, definition in {"Run": schema, **schema["$defs"]}.items():
        for key, field in definition.get("properties", {}).items():
            if "const" not in field and key != "weight":
                assert field.keys() & {"type", "anyOf", "enum", "$ref"}, f"{name}.{key}"


def test_ranges_defaults_and_descriptions_are_those_of_the_fields() -> None:
    definitions = run_schema()["$defs"]
    epochs = definitions["DistillConfig"]["properties"]["epochs"]
    assert (epochs["minimum"], epochs["default"], epochs["type"]) == (1, 20, "integer")
    assert epochs["description"]
    assert definitions["Mlp"]["required"] == ["type"]
    assert definitions["Mlp"]["additionalProperties"] is False
    assert definitions["ForwardKL"]["properties"]["weight"]["default"] == 1.0
    assert "nodes" not in definitions["Tree"]["properties"]
