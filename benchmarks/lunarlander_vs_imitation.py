"""Compare rldistill and imitation's DAgger on LunarLander: seconds and normalized score.

The clock runs over collecting and distilling in one process, after imports. imitation runs in `.venv-imitation`, which
is made at the first run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch._dynamo  # noqa: F401 - torch.optim does so at its first step, for a second

from rldistill import EvaluateConfig, collect, distill, evaluate, load_policy, train_teacher
from rldistill.evaluation.statistics import normalized_score
from rldistill.policies.network import NetworkPolicy
from rldistill.run.config import load_run
from rldistill.teachers.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared/teachers/sb3/ppo/LunarLander-v2_1/LunarLander-v2.zip"
VENV = ROOT / ".venv-imitation"
NEEDS = [
    "torch",
    "imitation==1.0.1",
    "gymnasium==0.29.1",
    "Box2D",
    "pygame",
    "stable-baselines3<2.3",
    "numpy<2",
    "pyarrow==21.*",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--imitation-seeds", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=100)
    asked = parser.parse_args()
    run = load_run(ROOT / "examples/lunarlander.yaml", environment={})
    assert isinstance(run.teacher, TrainConfig)
    own = ROOT / "runs/lunarlander/teacher"
    if SHARED.exists():
        teacher = load_policy(SHARED)
    else:
        teacher = load_policy(own) if (own / "policy.json").exists() else train_teacher(run.env, run.teacher, own)

    seconds, students, sizes = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(asked.seeds):
            folder = Path(temporary) / f"seed-{seed}"
            started = time.perf_counter()
            data = collect(run.env, teacher, run.collect, folder / "dataset", seed=seed)
            students.append(distill(data, run.students["mlp"], run.distill, folder / "student", seed=seed))
            seconds.append(time.perf_counter() - started)
            sizes.append(data.num_steps)
        config = EvaluateConfig(asked.episodes, videos=False)
        evaluation = evaluate(run.env, {"teacher": teacher, "mlp": students}, config, Path(temporary))
    row("rldistill", seconds, evaluation.policies["mlp"].normalized, max(sizes))

    random = np.array([run.returns for run in evaluation.policies["random"].runs])
    theirs = [imitate(teacher, max(sizes), asked.episodes, seed) for seed in range(asked.imitation_seeds)]
    if theirs:
        scored = np.array([run["returns"]["student"] for run in theirs])
        taught = np.array([run["returns"]["teacher"] for run in theirs])
        slow = [run["seconds"] for run in theirs]
        row("imitation", slow, normalized_score(scored, taught, random), max(sizes))
        print(f"ratio of the medians: {np.median(slow) / np.median(seconds):.1f}")


def row(name: str, seconds: list[float], score: Any, steps: int) -> None:
    low, high = score.ci95
    print(
        f"{name:<22} {np.median(seconds):6.1f} s (median of {len(seconds)}, most {max(seconds):.1f})  "
        f"normalized {score.value:.3f} ({low:.3f} to {high:.3f})  {steps:,} steps",
        flush=True,
    )


def make_environment(folder: Path, needs: list[str]) -> Path:
    """Return the Python of a virtual environment with another library and our version of PyTorch; make it at first."""
    python = folder / "bin/python"
    if not (folder / "ready").exists():
        print(f"making {folder.name}; some minutes", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        constraints = ["--constraint", str(folder / "constraints.txt")]
        pinned = [
            line
            for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
            if line.startswith("torch==")
        ]
        (folder / "constraints.txt").write_text("\n".join([*pinned, "setuptools<81"]), encoding="utf-8")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *constraints, *needs, "setuptools"], check=True)
        (folder / "ready").touch()
    return python


def imitate(teacher: NetworkPolicy, steps: int, episodes: int, seed: int) -> dict[str, object]:
    """Run imitation's DAgger in its own process and virtual environment."""
    python = make_environment(VENV, NEEDS)
    layers = [layer for name, layer in teacher.state_dict().items() if name.endswith((".weight", ".bias"))]
    arrays = {f"{('weight', 'bias')[n % 2]}{n // 2}": layer.numpy() for n, layer in enumerate(layers)}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "teacher.npz", **arrays)
        command = [str(python), str(ROOT / "benchmarks/imitation/dagger.py"), f"{folder}/teacher.npz"]
        command += ["--steps", str(steps), "--episodes", str(episodes), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"imitation failed:\n{done.stderr[-2000:]}")
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
