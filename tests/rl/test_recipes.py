"""Recipes that learn from reward, as run files have them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rldistill.config import RunConfig
from rldistill.evaluate.play import play
from rldistill.recipes.from_reward import own_returns
from rldistill.students.network import NetworkPolicy
from rldistill.students.storage import save_policy

RECIPES: list[dict[str, Any]] = [
    {"name": "ppd", "weight": 2.0},
    {"name": "kickstart", "gate": "performance"},
    {"name": "jump_start", "first_steps": 20},
    {"name": "finetune", "critic_warmup": 512},
    {"name": "qdagger"},
]


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rldistill.cli", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["name"])
def test_a_run_counts_the_steps_of_its_students_and_of_the_control(
    tmp_path: Path, teacher: NetworkPolicy, recipe: dict[str, Any]
) -> None:
    with_control = recipe["name"] == "ppd"
    save_policy(teacher, tmp_path / "teacher", {})
    document = {
        "env": {"id": "CartPole-v1"},
        "teacher": str(tmp_path / "teacher"),
        "collect": {"steps": 1_000, "epsilon": 0.2},
        "recipe": recipe,
        "distill": {"epochs": 15, "batch_size": 64},
        "ppo": {"total_steps": 1_024, "num_envs": 4, "num_steps": 64, "epochs": 4},
        "dqn": {"total_steps": 1_024, "offline_steps": 100, "batch_size": 16, "gradient_steps": 1},
        "control": "scratch" if with_control else "none",
        "students": {"mlp": {"type": "mlp", "hidden": [16]}},
        "evaluate": {"episodes": 5, "videos": False},
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    result = run_cli("run", str(tmp_path / "run.yaml"))
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "run" / "report.html").exists()
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    policies = evaluation["policies"]
    with_data = recipe["name"] in ("finetune", "qdagger")
    collected = 1_008 if with_data else 0
    assert policies["mlp"]["env_steps"] == 1_024 + collected
    assert (tmp_path / "run" / "dataset").exists() == with_data
    assert ("mlp-scratch" in policies) == with_control
    if with_control:
        assert policies["mlp-scratch"]["env_steps"] == 10_240
    steps = [point[0] for point in evaluation["efficiency"]["mlp"]["curve"]]
    assert steps == sorted(steps)
    assert steps[-2:] == [1_024 + collected] * 2  # the last score while it learned, and that of the evaluation
    assert ("mlp-scratch" in evaluation["efficiency"]) == with_control
    again = run_cli("run", str(tmp_path / "run.yaml"), "--resume")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(("recipe", "episodes"), [("ppd", 3), ("qdagger", 4)])
def test_the_best_is_chosen_by_as_many_episodes_as_asked(
    tmp_path: Path, teacher: NetworkPolicy, recipe: str, episodes: int
) -> None:
    save_policy(teacher, tmp_path / "teacher", {})
    document = {
        "name": "own", "env": {"id": "CartPole-v1"}, "teacher": str(tmp_path / "teacher"), "recipe": {"name": recipe},
        "ppo": {"eval_episodes": 3}, "dqn": {"eval_episodes": 4},
        "students": {"linear": {"type": "linear"}}, "out": str(tmp_path / "run"),
    }  # fmt: skip
    run = RunConfig.model_validate(document).plan()
    chosen_by = own_returns(run, teacher, None)
    judged_by = play(run.env, None, episodes, seed=run.seed).returns
    assert len(chosen_by) == episodes
    assert chosen_by.tolist() != judged_by.tolist()


def test_a_gate_that_never_opens_is_refused_before_the_first_step(tmp_path: Path, teacher: NetworkPolicy) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "class Worst:\n"
        "    def predict(self, obs, **kwargs):\n"
        "        return (np.asarray(obs)[..., 2] < 0).astype(np.int64), None\n"
    )
    document = {
        "env": {"id": "CartPole-v1"},
        "teacher": "own:Worst",
        "recipe": {"name": "kickstart", "gate": "performance"},
        "students": {"mlp": "mlp"},
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "rldistill.cli", "run", "run.yaml", "--no-verify"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode != 0
    assert "can never open" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
