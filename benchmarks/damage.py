"""Damage to every kind of file that the program writes: flipped bits and cut ends must be refused in one line."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

import rldistill
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import RLDistillError
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.distillation.gradient import Trainer
from rldistill.envs.spaces import spec_from_env
from rldistill.io.atomic import read_json, read_jsonl
from rldistill.io.stage_inputs import StageInputs
from rldistill.io.tensors import Checkpoint, read_tensors, require_sealed_zip
from rldistill.rl import ppo
from rldistill.rl.config import PPOConfig
from rldistill.rl.train_state import LearningTask
from rldistill.students import Mlp
from rldistill.students.storage import load_native
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import train_teacher

ENV = EnvConfig("CartPole-v1")
Reader = Callable[[Path], object]


def make_artifacts(root: Path) -> dict[str, tuple[Path, Reader]]:
    """Write one file of each kind; return each with the function that reads it."""
    torch.manual_seed(0)
    teacher = Mlp((8,)).build(spec_from_env(ENV)).eval()
    with torch.no_grad():
        teacher.output.weight *= 30  # so that there is something to learn
    data = collect(ENV, teacher, CollectConfig(steps=400, epsilon=0.3), root / "dataset", progress=False)
    config = DistillConfig(epochs=8, batch_size=32)
    distill(data, Mlp((8,)), config, root / "student", progress=False)
    StageInputs("distill", {"distill": config}).write(root / "student")
    with patch("rldistill.io.tensors.CHECKPOINT_INTERVAL_S", 0.0):
        ppo.learn(LearningTask(ENV, Mlp((8,)), root / "ppo"), PPOConfig(total_steps=256, num_envs=2, rollout_length=32))
    train_teacher(ENV, TrainConfig("PPO", 256, 2, 128, 1), root / "teacher", progress=False)

    def resume(path: Path) -> object:
        trainer = Trainer(data, Mlp((8,)), config)
        Checkpoint(path.parent.parent).load(lambda state: trainer.load_state_dict(state["trainer"]))

    zoo = Path(rldistill.__file__).parent / "zoo" / "pong-dqn" / "evaluation.json"
    shutil.copyfile(zoo, root / "evaluation.json")
    block = next((root / "dataset" / "blocks").iterdir())
    return {
        "policy.json": (root / "student" / "policy.json", lambda path: load_native(path.parent)),
        "policy.safetensors": (root / "student" / "policy.safetensors", lambda path: load_native(path.parent)),
        "inputs.json": (root / "student" / "inputs.json", read_json),
        "metrics.jsonl": (root / "student" / "metrics.jsonl", read_jsonl),
        "checkpoint of a fit": (root / "student" / "checkpoints" / "last.safetensors", resume),
        "checkpoint of PPO": (root / "ppo" / "checkpoints" / "last.safetensors", read_tensors),
        "checkpoint of a teacher": (root / "teacher" / "checkpoints" / "last.zip", require_sealed_zip),
        "curve.jsonl": (root / "teacher" / "curve.jsonl", read_jsonl),
        "manifest.json": (root / "dataset" / "manifest.json", lambda path: Dataset.read([path.parent])),
        "evaluation.json": (root / "evaluation.json", read_json),
        "block": (block, lambda path: Dataset.read([path.parents[1]])),
    }


def damage(path: Path, read: Reader, flips: int, cuts: int, rng: np.random.Generator) -> dict[str, int]:
    """Return how many damaged copies were refused, used without a word, or ended in another error."""
    whole = path.read_bytes()
    counts = {"refused": 0, "silent": 0, "tracebacks": 0}
    for number in range(flips + cuts):
        changed = bytearray(whole)
        if number < flips:
            changed[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        else:
            del changed[int(rng.integers(len(whole))) :]
        path.write_bytes(changed)
        try:
            read(path)
        except RLDistillError as error:
            counts["refused" if "\n" not in str(error) else "tracebacks"] += 1
        except Exception:
            traceback.print_exc()
            counts["tracebacks"] += 1
        else:
            counts["silent"] += 1
    path.write_bytes(whole)
    return counts


def main() -> None:
    """Print a table with a row for each kind of file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1_000)
    parser.add_argument("--cuts", type=int, default=200)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    root = Path(tempfile.mkdtemp())
    try:
        print(f"{'file':<26}{'refused':>9}{'silent':>9}{'tracebacks':>12}")
        for name, (path, read) in make_artifacts(root).items():
            counts = damage(path, read, asked.flips, asked.cuts, np.random.default_rng(0))
            print(f"{name:<26}{counts['refused']:>9,}{counts['silent']:>9,}{counts['tracebacks']:>12,}", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
