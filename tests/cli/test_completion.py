"""Completion of keys and values of a run file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rldistill.cli.completion import (
    complete_file,
    complete_run,
    complete_setting,
    complete_started_run,
    complete_teacher,
)


@pytest.mark.parametrize(
    ("incomplete", "choices"),
    [
        ("distill.sch", ["distill.schedule="]),
        ("distill.schedule=", ["distill.schedule=constant", "distill.schedule=cosine"]),
        ("verify=", ["verify=false", "verify=true"]),
        ("collect.mixture=e", ["collect.mixture=episode"]),
        ("recipe=of", ["recipe=offline"]),
        ("recipe.steps", ["recipe.steps_per_round="]),
        ("teacher.train.total", ["teacher.train.total_steps="]),
        ("evaluate.robustness.sti", ["evaluate.robustness.sticky="]),
        ("recipe.name=of", ["recipe.name=offline"]),
        ("students.own.type=tr", ["students.own.type=tree"]),
        ("students.own=ml", ["students.own=mlp"]),
        ("students.own.max_d", ["students.own.max_depth="]),
        ("students.own.features=four", ["students.own.features=fourier"]),
        ("distill.losses=[fo", ["distill.losses=[forward_kl]"]),
        ("teacher=zoo:cart", ["teacher=zoo:cartpole-ppo"]),
        ("distill.epochs=", []),
        ("nothing", []),
        ("nothing=", []),
    ],
)
def test_keys_and_values_are_completed(incomplete: str, choices: list[str]) -> None:
    assert complete_setting(incomplete) == choices


def test_keys_without_a_beginning_are_all_keys() -> None:
    keys = complete_setting("")
    assert {"env.id=", "teacher=", "evaluate.baseline=", "seeds="} <= set(keys)
    assert len(keys) == len(set(keys))


def test_files_and_runs_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pong.yaml", "examples/pong.yml", "examples/deep/er/pong.yaml", "runs/pong/evaluation.json", "x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert complete_file("") == ["examples/pong.yml", "pong.yaml"]
    assert complete_file("ex") == complete_file("examples/p") == ["examples/pong.yml"]
    assert complete_file(f"{tmp_path}/po") == [f"{tmp_path}/pong.yaml"]
    assert complete_file("none/x") == []
    assert complete_run("") == complete_run("runs/p") == ["runs/pong"]
    (tmp_path / "runs/new").mkdir()
    (tmp_path / "runs/new/provenance.json").touch()
    assert complete_started_run("ru") == ["runs/new"]
    assert complete_teacher("zoo:po") == ["zoo:pong-dqn"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_receives_the_choices(shell: str) -> None:
    line = "rldistill run x distill.sch"
    environment = {
        "_RLDISTILL_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": line,
        "COMP_CWORD": "3",
    }
    command = [sys.executable, "-m", "rldistill"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert "distill.schedule=" in done.stdout
    assert "distill.epochs" not in done.stdout
