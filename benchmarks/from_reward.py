"""Measure recipes that learn from reward with a teacher: final normalized scores on real environments.

`corrupted` adds Gaussian noise to the teacher's weights until it scores about 0.34 of itself, and lets that teach.
`finetune` also says how far the student ever fell below where it began. Every run goes on after an interruption.
`--quick` is one training seed, and no Pong.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matrix import CNN62, REGIONS
from rich.console import Console
from rich.table import Table
from torch import nn

from rldistill import EvaluateConfig, Policy, load_policy
from rldistill.data.manifest import Manifest
from rldistill.evaluation.episodes import CALIBRATION, PlayConfig, PolicyRuns, play
from rldistill.evaluation.evaluate import evaluate
from rldistill.io.atomic import read_jsonl, write_json
from rldistill.io.progress import track
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes import Finetune
from rldistill.recipes.from_reward import validation_returns
from rldistill.recipes.job import Run
from rldistill.run.config import read_run
from rldistill.run.jobs import load_teacher
from rldistill.run.stages import run_collect, run_distill
from rldistill.students.storage import load_native, save_policy
from rldistill.teachers.load import SavedTeacher

CORRUPTED, SPOILT = "corrupted", 0.34

LANDER_PPO = {
    "num_envs": 16,
    "rollout_length": 256,
    "epochs": 10,
    "gamma": 0.999,
    "gae_lambda": 0.98,
    "eval_every": 10_000,
}
PIXELS = {"epochs": 8, "batch_size": 64, "learning_rate": 1.5e-3}

# `wanted` is the share of the sound teacher that the student is to reach; of `seeds` training seeds.
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "ppd-LunarLander": {
        "wanted": 0.98, "seeds": 5, "episodes": 100, "agent": "ppo/LunarLander-v2_1",
        "run": {"env": {"id": "LunarLander-v3"}, "recipe": {"name": "ppd", "weight": 3.0},
                "students": {"quarter": {"type": "mlp", "hidden": [28, 28]}},
                "ppo": LANDER_PPO | {"total_steps": 50_000, "schedule": "linear"}},
    },
    "ppd-Hopper": {
        "wanted": 0.97, "seeds": 3, "episodes": 30, "agent": "tqc/Hopper-v3_1",
        "run": {"env": {"id": "Hopper-v5"}, "recipe": {"name": "ppd", "weight": 5.0},
                "distill": {"losses": ["wasserstein"]},
                "students": {"quarter": {"type": "mlp", "hidden": [96, 96]}},
                "ppo": {"total_steps": 300_000, "num_envs": 8, "rollout_length": 512, "batch_size": 256,
                        "learning_rate": 1e-3, "schedule": "linear", "max_grad_norm": 5.0, "eval_every": 20_000}},
    },
    "corrupted-LunarLander": {
        "wanted": 0.64, "seeds": 5, "episodes": 100, "agent": "ppo/LunarLander-v2_1", CORRUPTED: True,
        "run": {"env": {"id": "LunarLander-v3"}, "recipe": {"name": "ppd", "weight": {"type": "linear", "end": 0.0}},
                "students": {"mlp": {"type": "mlp", "hidden": [64, 64]}},
                "ppo": LANDER_PPO | {"total_steps": 500_000, "epochs": 4, "entropy_coef": 0.01, "eval_every": 25_000}},
    },
    "finetune-LunarLander": {
        "wanted": 1.0, "seeds": 5, "episodes": 100, "agent": "dqn/LunarLander-v2_1",
        "run": {"env": {"id": "LunarLander-v3"}, "recipe": {"name": "finetune", "critic_warmup": 40_000},
                "collect": {"steps": 20_000, "gamma": 0.999}, "distill": {"epochs": 20},
                "students": {"mlp": {"type": "mlp", "hidden": [32, 32]}},
                "ppo": LANDER_PPO | {"total_steps": 300_000, "epochs": 4, "eval_every": 20_000}},
    },
    # Beside the teacher's own representation a student is the teacher in little time: what counts is where it goes.
    "qdagger-Pong": {
        "wanted": 1.0, "seeds": 2, "episodes": 100, "teacher": "zoo:pong-dqn",
        "run": {"env": {"id": "ALE/Pong-v5"}, "recipe": {"name": "qdagger", "weight": 0.3},
                "collect": {"steps": 100_000, "epsilon": 0.05},
                "students": {"mlp": {"type": "mlp", "hidden": [256], "features": "teacher"}},
                "dqn": {"total_steps": 200_000, "buffer_size": 200_000, "learning_starts": 2_000, "learning_rate": 3e-4,
                        "schedule": "linear", "offline_steps": 20_000, "n_steps": 5, "gamma": 0.995,
                        "terminal_on_reward": True, "epsilon_schedule": {"type": "linear", "start": 0.02, "end": 0.01},
                        "batch_size": 256, "gradient_steps": 2, "target_update_interval": 1_000, "ema_decay": 0.999,
                        "eval_every": 40_000, "eval_episodes": 40}},
    },
    "qdagger-halfway-Pong": {
        "wanted": 1.0, "seeds": 1, "episodes": 30, "weights": "pong-dqn-halfway/policy.safetensors",
        "run": {"env": {"id": "ALE/Pong-v5"},
                "recipe": {"name": "qdagger", "weight": {"type": "linear", "end": 0.0, "until": 0.5}},
                "collect": {"steps": 100_000, "epsilon": 0.05},
                "students": {"mlp": {"type": "mlp", "hidden": [256, 128],
                                     "features": {"type": "objects", "regions": REGIONS}}},
                "dqn": {"total_steps": 300_000, "buffer_size": 300_000, "learning_starts": 2_000, "batch_size": 256,
                        "schedule": "linear", "offline_steps": 10_000, "n_steps": 5, "gamma": 0.995,
                        "terminal_on_reward": True, "epsilon_schedule": {"type": "linear", "start": 0.02, "end": 0.0},
                        "gradient_steps": 8, "target_update_interval": 1_000, "ema_decay": 0.999,
                        "eval_every": 30_000}},
    },
    "qdagger-cnn-Pong": {
        "wanted": 1.0, "seeds": 1, "episodes": 100, "teacher": "zoo:pong-dqn",
        "run": {"env": {"id": "ALE/Pong-v5"}, "recipe": {"name": "qdagger", "weight": 5.0},
                "collect": {"steps": 100_000, "epsilon": 0.05}, "students": {"cnn": CNN62 | {"hidden": [128]}},
                "dqn": {"total_steps": 300_000, "buffer_size": 200_000, "learning_starts": 5_000, "learning_rate": 3e-4,
                        "schedule": "linear", "offline_steps": 10_000, "n_steps": 3, "epsilon_schedule": 0.01,
                        "gradient_steps": 1, "eval_every": 50_000}},
    },
    "finetune-Pong": {
        "wanted": 1.0, "seeds": 1, "episodes": 30, "weights": "pong-dqn-halfway/policy.safetensors",
        "run": {"env": {"id": "ALE/Pong-v5"}, "recipe": {"name": "finetune", "critic_warmup": 20_000},
                "collect": {"steps": 60_000, "epsilon": 0.05}, "distill": PIXELS, "students": {"cnn": CNN62},
                "ppo": {"total_steps": 500_000, "rollout_length": 128, "epochs": 4, "batch_size": 256,
                        "learning_rate": 2.5e-4, "clip_range": 0.1, "entropy_coef": 0.005, "eval_every": 50_000}},
    },
}  # fmt: skip


def classic_network() -> nn.Module:
    """Q-network of Mnih 2015 for the six actions of Pong."""
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6),
    )  # fmt: skip


def planned(name: str, out: Path, agents: Path, seeds: int) -> tuple[Run, Policy]:
    """Return the run of an experiment and the undamaged teacher."""
    about = EXPERIMENTS[name]
    teacher: str | dict[str, str]
    if "weights" in about:
        teacher = {"path": f"from_reward:classic_network@{agents / about['weights']}", "head": "q_values"}
    else:
        teacher = str(agents / "sb3" / about["agent"]) if "agent" in about else about["teacher"]
    document = {**about["run"], "name": name, "teacher": teacher, "folder": str(out / name), "seeds": [*range(seeds)]}
    run = read_run(document)
    sound = load_teacher(run)
    if CORRUPTED in about:
        corrupt(run, sound, run.out / CORRUPTED)
        run = replace(run, teacher=SavedTeacher(str(run.out / CORRUPTED)))
    return run, sound


def corrupt(run: Run, teacher: Policy, folder: Path) -> None:
    """Store the teacher with enough weight noise to remove most of its score."""
    if (folder / "policy.json").exists():
        return
    assert isinstance(teacher, NetworkPolicy)
    worst, best = (
        float(play(run.env, one, 50, PlayConfig(split=CALIBRATION)).returns.mean()) for one in (None, teacher)
    )
    sound = {name: value.clone() for name, value in teacher.state_dict().items()}
    low, high = 0.0, 1.0
    for _ in range(12):
        scale = (low + high) / 2
        generator = torch.Generator().manual_seed(0)
        noisy = {
            name: value + scale * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            for name, value in sound.items()
            if name.endswith((".weight", ".bias"))
        }
        teacher.load_state_dict({**sound, **noisy})
        left = (float(play(run.env, teacher, 50, PlayConfig(split=CALIBRATION)).returns.mean()) - worst) / (
            best - worst
        )
        print(f"noise of {scale:.3f} leaves {left:.2f} of the teacher")
        if abs(left - SPOILT) < 0.05:
            break
        low, high = (scale, high) if left > SPOILT else (low, scale)
    save_policy(teacher, folder, {"noise": scale, "left": left})
    teacher.load_state_dict(sound)


def depth(run: Run, teacher: Policy, name: str, seed: int) -> float:
    """Return the lowest score of fine-tuning minus its first score, normalized."""
    folder = run.out / "students" / name / f"seed-{seed}"
    began, worst, best = (
        float(validation_returns(run, teacher, one).mean())
        for one in (load_native(folder.with_name(f"{folder.name}-distilled")), None, teacher)
    )
    rows = read_jsonl(folder / "metrics.jsonl")
    lowest = min(float(row["score"]) for row in rows if "score" in row)
    return (lowest - began) / (best - worst)


def row_of(name: str, out: Path, agents: Path, quick: bool) -> dict[str, Any]:
    about = EXPERIMENTS[name]
    run, sound = planned(name, out, agents, 1 if quick else about["seeds"])
    steps = 0
    if run.recipe.needs_dataset:
        run_collect(run, mode="resume")
        steps = Manifest.read(run.out / "dataset").num_steps
    run_distill(run, mode="resume")
    (student,) = run.students
    place = run.out / "students" / student
    steps += run.dqn.total_steps if about["run"]["recipe"]["name"] == "qdagger" else run.ppo.total_steps
    players = {
        "teacher": PolicyRuns("teacher", {None: sound}, 0),
        student: PolicyRuns("student", {seed: load_native(place / f"seed-{seed}") for seed in run.seeds}, steps),
    }
    if CORRUPTED in about:
        players[CORRUPTED] = PolicyRuns("student", {None: load_policy(run.out / CORRUPTED)}, 0)
    asked = EvaluateConfig(about["episodes"], videos=False)
    with track(f"evaluate {name}", "episodes") as report:
        said = evaluate(run.env, players, asked, run.out, progress=report).to_dict()["policies"]
    row = {"experiment": name, "wanted": about["wanted"], "seeds": len(run.seeds), "env_steps": steps}
    row |= {"normalized": said[student]["normalized"]}
    row |= {"parameters": [said[who]["parameters"] for who in (student, "teacher")]}
    if CORRUPTED in about:
        row[CORRUPTED] = said[CORRUPTED]["normalized"]["value"]
    if isinstance(run.recipe, Finetune):
        row["lowest"] = min(depth(run, sound, student, seed) for seed in run.seeds)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one training seed, and no Pong")
    parser.add_argument("--only", default="", help="experiments that begin so")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/from-reward"))
    parser.add_argument(
        "--teachers", type=Path, default=Path("../shared/teachers"), help="agents, rl-baselines3-zoo's in sb3/"
    )
    asked = parser.parse_args()
    names = [name for name in EXPERIMENTS if name.startswith(asked.only) and not (asked.quick and "Pong" in name)]
    out = asked.out / ("quick" if asked.quick else "full")
    table = Table("experiment", "wanted", "reached (95%)", "parameters, of", "steps", "seeds", "besides")
    rows = []
    for name in names:
        row = row_of(name, out, asked.teachers, asked.quick)
        rows.append(row)
        besides = f"its teacher has {row[CORRUPTED]:.2f}" if CORRUPTED in row else ""
        besides = f"lowest {row['lowest']:+.2f} from its start" if "lowest" in row else besides
        low, high = row["normalized"]["ci95"] or (np.nan, np.nan)
        table.add_row(
            name, f"{row['wanted']}", f"{row['normalized']['value']:.3f} ({low:.2f} to {high:.2f})",
            " of ".join("–" if count is None else f"{count:,}" for count in row["parameters"]), f"{row['env_steps']:,}",
            str(row["seeds"]), besides,
        )  # fmt: skip
        if asked.json is not None:
            write_json(asked.json, {"rows": rows})
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
