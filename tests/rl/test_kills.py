"""Tests that learning from reward, killed at random moments and resumed, gives the bytes of an uninterrupted run."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rldistill.io.atomic import read_jsonl, sha256_file
from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import save_policy

from .. import commands

pytestmark = pytest.mark.slow

# A checkpoint after every update, so that kills also meet those.
CHECKPOINTS = """
import rldistill.io.tensors, rldistill.rl.dqn
rldistill.io.tensors.CHECKPOINT_INTERVAL_S = 0.0
rldistill.io.tensors.MAX_CHECKPOINT_SHARE = float("inf")
rldistill.rl.dqn.LOG_INTERVAL_STEPS = 200
"""


def num_rows(folder: Path) -> int:
    return len(read_jsonl(folder / "metrics.jsonl"))


@pytest.mark.parametrize("recipe", ["ppd", "qdagger"])
def test_killed_and_resumed_run_has_the_same_student(tmp_path: Path, teacher: NetworkPolicy, recipe: str) -> None:
    save_policy(teacher, tmp_path / "teacher", {})
    document: dict[str, Any] = {
        "env": {"id": "CartPole-v1"},
        "teacher": str(tmp_path / "teacher"),
        "collect": {"steps": 1_000, "epsilon": 0.2},
        "recipe": {"name": recipe},
        "distill": {"epochs": 10, "batch_size": 64},
        "ppo": {"total_steps": 4_096, "num_envs": 4, "rollout_length": 32, "epochs": 2, "eval_every": 1_024},
        "dqn": {"total_steps": 4_000, "offline_steps": 50, "batch_size": 16, "gradient_steps": 1, "eval_every": 1_000},
        "students": {"mlp": {"type": "mlp", "hidden": [8]}},
    }
    rng = random.Random(0)
    hashes = []
    for name in ("whole", "killed"):
        run = tmp_path / f"{name}.yaml"
        run.write_text(yaml.safe_dump(document | {"out": str(tmp_path / name)}))
        student = tmp_path / name / "students" / "mlp" / "seed-0"
        if recipe != "ppd":
            assert commands.run("collect", str(run), "--quiet").returncode == 0
        kills = 0
        for target in sorted(rng.sample(range(1, 15), 3)) if name == "killed" else []:
            process = commands.start("distill", str(run), "--resume", "--quiet", before=CHECKPOINTS)
            while process.exitcode is None and num_rows(student) < target:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        assert name == "whole" or kills == 3
        assert commands.run("distill", str(run), "--resume", "--quiet", before=CHECKPOINTS).returncode == 0
        hashes.append(sha256_file(student / "policy.safetensors"))
    assert hashes[0] == hashes[1]
