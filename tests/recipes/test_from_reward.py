"""Recipes that learn from reward, as run files have them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.io.progress import SILENT
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.from_reward import train_control, validation_returns
from rldistill.recipes.job import StudentJob
from rldistill.run.config import read_run
from rldistill.students import Mlp
from rldistill.students.storage import save_policy

from .. import commands

pytestmark = pytest.mark.slow

RECIPES: list[dict[str, Any]] = [
    {"name": "ppd", "weight": 2.0},
    {"name": "kickstart", "gate": "performance"},
    {"name": "jump_start", "first_steps": 20},
    {"name": "finetune", "critic_warmup": 512},
    {"name": "qdagger"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["name"])
def test_env_steps_of_students_and_control(tmp_path: Path, teacher: NetworkPolicy, recipe: dict[str, Any]) -> None:
    with_control = recipe["name"] == "ppd"
    save_policy(teacher, tmp_path / "teacher", {})
    document = {
        "env": {"id": "CartPole-v1"},
        "teacher": str(tmp_path / "teacher"),
        "collect": {"steps": 1_000, "epsilon": 0.2},
        "recipe": recipe,
        "distill": {"epochs": 15, "batch_size": 64},
        "ppo": {"total_steps": 1_024, "num_envs": 4, "rollout_length": 64, "epochs": 4},
        "dqn": {"total_steps": 1_024, "offline_steps": 100, "batch_size": 16, "gradient_steps": 1},
        "control": "from_scratch" if with_control else "none",
        "students": {"mlp": {"type": "mlp", "hidden": [16]}},
        "evaluate": {"episodes": 5, "videos": False},
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    result = commands.run("run", str(tmp_path / "run.yaml"))
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
    again = commands.run("run", str(tmp_path / "run.yaml"), "--resume")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(("recipe", "episodes"), [("ppd", 3), ("qdagger", 4)])
def test_best_policy_is_selected_by_eval_episodes(
    tmp_path: Path, teacher: NetworkPolicy, recipe: str, episodes: int
) -> None:
    save_policy(teacher, tmp_path / "teacher", {})
    document = {
        "name": "own", "env": {"id": "CartPole-v1"}, "teacher": str(tmp_path / "teacher"), "recipe": {"name": recipe},
        "ppo": {"eval_episodes": 3}, "dqn": {"eval_episodes": 4},
        "students": {"linear": {"type": "linear"}}, "out": str(tmp_path / "run"),
    }  # fmt: skip
    run = read_run(document)
    chosen_by = validation_returns(run, teacher, None)
    judged_by = play(run.env, None, episodes, PlayConfig(run.seed)).returns
    assert len(chosen_by) == episodes
    assert chosen_by.tolist() != judged_by.tolist()


def test_control_has_the_action_head_of_the_student(tmp_path: Path) -> None:
    env = EnvConfig("Pendulum-v1")
    spec = spec_from_env(env)
    teacher = Mlp((8,)).build(replace(spec, head=spec.head.as_kind("squashed_gaussian"))).eval()
    save_policy(teacher, tmp_path / "teacher", {})
    document = {
        "name": "own", "env": {"id": env.id}, "teacher": str(tmp_path / "teacher"), "recipe": {"name": "ppd"},
        "ppo": {"num_envs": 2, "rollout_length": 16, "eval_episodes": 1}, "control": "from_scratch",
        "students": {"one": MLP}, "out": str(tmp_path / "run"),
    }  # fmt: skip
    run = read_run(document)
    policy = train_control(StudentJob(run, teacher, None, "one", 0), 6, "new", SILENT)
    assert policy.spec.head.kind == "squashed_gaussian"


OWN = """
import numpy as np
class Teacher:
    def predict(self, obs, **kwargs):
        return self.act(np.asarray(obs)), None
class Worst(Teacher):
    def act(self, obs):
        return (obs[..., 2] < 0).astype(np.int64)
class Best(Teacher):
    def act(self, obs):
        return (obs[..., 2] + obs[..., 3] > 0).astype(np.int64)
class Still(Teacher):
    def act(self, obs):
        return np.zeros((*obs.shape[:-1], 1), np.float32)
def dense(shape, outputs):
    import keras
    return keras.Sequential([keras.layers.Input(shape), keras.layers.Dense(outputs)])
"""
MLP, TREE, GRU = {"type": "mlp", "hidden": [8]}, {"type": "tree"}, {"type": "gru", "size": 4}
RIDGE = {"type": "ridge"}


@pytest.mark.parametrize(
    ("teacher", "recipe", "more", "message"),
    [
        ("Worst", {"name": "kickstart", "gate": "performance"}, {}, "nothing to distil"),
        ("Worst", {"name": "finetune"}, {}, "nothing to distil"),
        ("Worst", {"name": "qdagger"}, {}, "nothing to distil"),
        ("Best", {"name": "finetune"}, {"students": {"one": TREE}}, "does not learn by gradient"),
        ("Best", {"name": "qdagger"}, {"students": {"one": GRU}}, "recurrent"),
        ("Best", {"name": "finetune"}, {"distill": {"losses": ["q_mse"]}}, "distill.losses"),
        ("Best", {"name": "qdagger"}, {"distill": {"losses": ["bellman_target"]}}, "distill.losses"),
        ("Best", {"name": "finetune"}, {"ppo": {"total_steps": 512}}, "recipe.critic_warmup"),
        ("Best", {"name": "finetune"}, {"ppo": {"critic_warmup": 512}}, "recipe.critic_warmup"),
        ("Best", {"name": "qdagger"}, {"dqn": {"total_steps": 512}}, "dqn.learning_starts"),
        ("Best", {"name": "kickstart", "weight": -2.0}, {}, "recipe.weight"),
        ("Still", {"name": "qdagger"}, {"env": {"id": "Pendulum-v1"}}, "one choice among actions"),
        ("Still", {"name": "ppd"}, {"env": {"id": "Pendulum-v1"}}, "distill.losses"),
        ("Best", {"name": "ppd"}, {"students": {"one": {"type": "keras", "model": "own:dense"}}}, "learn by gradient"),
        ("Best", {"name": "qdagger"}, {"dqn": {"max_grad_norm": -1}}, "dqn.max_grad_norm"),
        ("Best", {"name": "offline"}, {"distill": {"losses": ["q_mse"]}}, "distill.losses: QMSE"),
        (
            "Best",
            {"name": "offline"},
            {"students": {"one": TREE}, "distill": {"losses": ["q_huber"]}},
            "a tree cannot",
        ),
        ("Best", {"name": "offline"}, {"students": {"one": RIDGE}, "distill": {"losses": ["jeffreys"]}}, "a ridge"),
        ("Best", {"name": "offline"}, {"students": {"one": {"type": "cnn"}}}, "cnn"),
        ("Best", {"name": "offline"}, {"collect": {"features": True}}, "collect.features"),
    ],
)
def test_impossible_settings_are_refused_before_the_first_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teacher: str,
    recipe: dict[str, Any],
    more: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    document = {"env": {"id": "CartPole-v1"}, "teacher": f"own:{teacher}", "recipe": recipe, "students": {"one": MLP}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document | {"out": str(tmp_path / "run")} | more))
    monkeypatch.chdir(tmp_path)
    result = commands.run("run", "run.yaml", "verify=false")
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
