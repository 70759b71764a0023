from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.io.atomic import write_json
from rldistill.reporting.compare_runs import compare_runs
from rldistill.reporting.page import write_run_comparison


def run(folder: Path, evaluation: dict[str, Any], config: dict[str, Any], **changes: Any) -> Path:
    folder.mkdir()
    write_json(folder / "evaluation.json", evaluation | changes)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, "out": str(folder), **config}))
    return folder


def test_runs_are_compared_with_their_differences(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    one = run(tmp_path / "a", evaluation, {"collect": {"steps": 100}, "seed": 0})
    other = run(tmp_path / "b", evaluation, {"collect": {"steps": 200}, "seed": 0, "recipe": {"name": "dagger"}})
    found = compare_runs([one, other])
    assert found.differences == {
        "collect.steps": {str(one): 100, str(other): 200},
        "recipe.name": {str(one): None, str(other): "dagger"},
    }
    text = str(found)
    assert found.to_dict()["runs"][str(one)]["env"] == "CartPole-v1"
    assert text.count("small-mlp") == 2
    assert sum(row[1].text == "teacher" for row in found.rows) == 1  # it is the same one
    assert "dagger" in text


def test_page_of_a_comparison(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    folders = [run(tmp_path / name, evaluation, {"seed": seed}) for seed, name in enumerate("ab")]
    page = tmp_path / "compared.html"
    result = CliRunner().invoke(app, ["compare", *map(str, folders), "--page", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert f"The highest mean return has small-mlp of {folders[0]}: 450.00, 95% interval 400.00 to 480.00." in text
    assert text.count('<text class="name" y=') == 5  # the teacher, and two students of each run
    assert '<th scope="row">seed</th><td>0</td><td>1</td>' in text
    (tmp_path / "deep").mkdir()
    same_name = run(tmp_path / "deep/a", evaluation, {})
    write_run_comparison(compare_runs([folders[0], same_name]), page)
    assert page.read_text(encoding="utf-8").count('<text class="name" y=') == 5
    again = CliRunner().invoke(app, ["compare", *map(str, folders), "--page", str(page)])
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)


def test_incomparable_runs_are_refused(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    one, other = run(tmp_path / "a", evaluation, {}), run(tmp_path / "b", evaluation, {}, env="Other-v0")
    with pytest.raises(ConfigError, match="different environments cannot be compared"):
        compare_runs([one, other])
    with pytest.raises(ConfigError, match="two or more different runs"):
        compare_runs([one, one])
    with pytest.raises(CorruptArtifactError, match="there is no such folder"):
        compare_runs([one, tmp_path / "none"])
    (tmp_path / "none").mkdir()
    with pytest.raises(CorruptArtifactError, match="Run `rldistill evaluate` first"):
        compare_runs([one, tmp_path / "none"])
    (other / "config.yaml").write_text("a: [")
    (other / "evaluation.json").write_text((one / "evaluation.json").read_text())
    with pytest.raises(CorruptArtifactError, match="not valid YAML"):
        compare_runs([one, other])
