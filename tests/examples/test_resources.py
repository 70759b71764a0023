"""Run files of `examples/` for power grids and job shops, in a reduced form, and what their teachers know."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from rldistill.run.config import load_run
from rldistill.run.stages import run_all
from rldistill.students.storage import load_native

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def test_grid(tmp_path: Path) -> None:
    pytest.importorskip("gym_anm", reason="gym-anm is not installed: pip install 'rldistill[resources]'")
    small = [
        "env.kwargs.max_episode_steps=4",
        "collect.steps=256",  # over two of each quarter of an hour, so that the held-out ones are known
        "collect.envs_per_stream=8",
        "distill={epochs: 60, batch_size: 16, learning_rate: 0.01, patience: 0}",
    ]
    small += ["seeds=[0]", "evaluate.episodes=1", "verify=false"]
    run_all(load_run(ROOT / "examples" / "grid.yaml", [f"out={tmp_path}", *small], {}), quiet=True)
    found = json.loads((tmp_path / "evaluation.json").read_text())["policies"]
    assert found["teacher"]["mean"]["value"] > found["random"]["mean"]["value"]
    assert found["mlp"]["mean"]["value"] > found["random"]["mean"]["value"]
    assert (tmp_path / "report.html").exists()


def test_controller_needs_no_more_than_the_observation() -> None:
    pytest.importorskip("gym_anm", reason="gym-anm is not installed: pip install 'rldistill[resources]'")
    from examples.teachers import grid_mpc
    from gym_anm import MPCAgentPerfect

    env = gymnasium.make("gym_anm:ANM6Easy-v0")
    grid, act = env.unwrapped, grid_mpc.controller()
    sizes = (grid_mpc.SAFETY_MARGIN, grid_mpc.PLANNING_STEPS)
    agent = MPCAgentPerfect(grid.simulator, grid.action_space, grid.gamma, *sizes)  # type: ignore[attr-defined]
    obs, _ = env.reset(seed=3)
    for _ in range(3):
        np.testing.assert_allclose(act(obs.astype(np.float32)), expected := agent.act(grid), atol=1e-4)
        obs, *_ = env.step(expected)


def test_jobshop(tmp_path: Path) -> None:
    pytest.importorskip("JSSEnv", reason="jssenv is not installed: pip install 'rldistill[resources]'")
    small = ["env.kwargs.instances=[1, 2]", "collect.steps=320", "recipe.steps_per_round=80", "recipe.rounds=1"]
    small += ["seeds=[0]", "students.tree.min_samples=20", "evaluate.episodes=2", "verify=false"]
    run_all(load_run(ROOT / "examples" / "jobshop.yaml", [f"out={tmp_path}", *small], {}), quiet=True)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["env_kwargs"]["instances"][0] == 11  # held out from the collection
    returns = evaluation["policies"]["tree"]["runs"][0]["returns"]
    assert all(-2_300 < value < -1_300 for value in returns)
    tree = load_native(tmp_path / "students" / "tree" / "seed-0")
    assert int((tree.feature < 0).sum()) <= 32  # type: ignore[operator]


def test_rollouts_replay_the_shop_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("JSSEnv", reason="jssenv is not installed: pip install 'rldistill[resources]'")
    from JSSEnv.dispatching import DISPATCHING_RULES
    from JSSEnv.envs.jss_env import JssEnv

    from examples import jobshop

    monkeypatch.setattr(np.random, "random", lambda: 1.0)  # the rules of the package wait at random
    env = jobshop.JobShop([3])
    for number, name in enumerate(jobshop.RULES):
        package = JssEnv({"instance_path": jobshop.FOLDER / "ta03"})
        _, makespan = DISPATCHING_RULES[name].run_episode(package)
        total, (obs, _), done = 0.0, env.reset(), False
        while not done:
            obs, reward, done, _, _ = env.step(number)
            total -= reward
        assert total == makespan, name
    obs, _ = env.reset()
    values = jobshop.Rollout()(torch.from_numpy(obs["history"])[None])
    assert (-values[0]).tolist() == jobshop.makespans(3, ())
    assert jobshop.makespans(3, ())[1] == 1_426  # MWR all the way
    history = (3, 1, 1, 2, 3, 1)
    for rule in range(len(jobshop.RULES)):  # the rule once, then MWR all the way
        env.reset()
        total, done, choices = 0.0, False, [action - 1 for action in history] + [rule]
        while not done:
            _, reward, done, _, _ = env.step(choices.pop(0) if choices else 1)
            total -= reward
        assert total == jobshop.makespans(3, history)[rule]
