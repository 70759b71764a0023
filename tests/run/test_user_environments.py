"""Errors of environments in every stage of a run: one line with the user's file and line."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.core.spec import EnvConfig
from rldistill.envs.vector import keeps_state_across_reset
from rldistill.evaluation.check_env import require_env

from ..envs import user_envs

pytestmark = pytest.mark.slow
LATE = """
from tests.envs.user_envs import Base, zeros, teacher
steps = 0
class Late(Base):
    limit = 10**9
    def step(self, action):
        global steps
        steps += 1
        if steps > Late.limit:
            raise KeyError("sensor 3")
        return super().step(action)
"""
RECIPES = {
    "offline": "",
    "dagger": "recipe: {name: dagger, rounds: 2, steps_per_round: 96}\n",
    "on_policy": "recipe: {name: on_policy, rounds: 2, steps_per_round: 96}\n",
    "kickstart": "recipe: {name: kickstart}\nppo: {total_steps: 4096, num_envs: 2, rollout_length: 64}\n",
    "from_scratch": "recipe: {name: from_scratch}\nppo: {total_steps: 4096, num_envs: 2, rollout_length: 64}\n",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_error_after_some_steps_is_one_line(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = f"late_{recipe}"
    (tmp_path / f"{module}.py").write_text(LATE)
    (tmp_path / "run.yaml").write_text(
        f"env: {{id: '{module}:Late'}}\nteacher: {user_envs.__name__}:teacher\ncollect: {{steps: 1600, epsilon: 0.3}}\n"
        f"{RECIPES[recipe]}students: {{mlp: {{type: mlp, hidden: [8]}}}}\ndistill: {{epochs: 30}}\nverify: false\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    late = importlib.import_module(module)
    config = EnvConfig(f"{module}:Late")
    keeps_state_across_reset(config)
    require_env(config)  # both play steps that do not belong to a stage
    monkeypatch.setattr(late.Late, "limit", late.steps + 1_650)
    result = CliRunner().invoke(app, ["run", "run.yaml", "--quiet"])
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning")]
    assert len(lines) == 1
    assert f"env step failed: KeyError: 'sensor 3' ({module}.py, line 10)." in lines[0]
    assert "Traceback" not in result.output
