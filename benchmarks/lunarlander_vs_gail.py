"""Compare `recipe: adversarial` and imitation's GAIL on LunarLander, from the same ten recorded episodes.

Both have networks of 64x64 and as many environment steps, and keep the best policy by 10 validation episodes every
40,000 steps. GAIL runs with our settings of PPO and, for the first seed, with those of its tutorial. Nobody queries
the teacher after the recording. An interrupted run goes on with --out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from lunarlander_vs_imitation import NEEDS, ROOT, VENV, make_environment

from rldistill import Dataset, EvaluateConfig, ImitateConfig, collect, evaluate, imitate, load_policy
from rldistill.data.dataset import open_dataset
from rldistill.evaluation.statistics import normalized_score
from rldistill.run.config import load_run

EVAL_EVERY = 40_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--recorded", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gail")
    options = parser.parse_args()
    run = load_run(ROOT / "examples/adversarial.yaml", environment={})
    teacher = load_policy("zoo:lunarlander-ppo")
    dataset = options.out / "dataset"
    collect(run.env, teacher, run.collect, dataset, mode="resume", progress=False)
    data = open_dataset(dataset).first_episodes(options.recorded)
    recipe: Any = dataclasses.replace(run.recipe, episodes=options.recorded, pretrain=False)
    ppo = dataclasses.replace(run.ppo, total_steps=options.steps, eval_every=EVAL_EVERY, critic_warmup=0)
    students = []
    for seed in range(options.seeds):
        config, folder = ImitateConfig(recipe, run.distill, ppo, seed=seed), options.out / f"seed-{seed}"
        students.append(imitate(dataset, run.students["mlp"], config, folder, mode="resume", progress=False))
    evaluation = evaluate(
        run.env,
        {"teacher": teacher, "mlp": students},
        EvaluateConfig(options.episodes, videos=False),
        options.out,
    )
    returns = {name: np.array([one.returns for one in entry.runs]) for name, entry in evaluation.policies.items()}
    print(
        f"{len(data):,} recorded steps; teacher {returns['teacher'].mean():.1f}, random {returns['random'].mean():.1f}"
    )
    show("rldistill", evaluation.policies["mlp"].normalized, ppo.total_steps)
    for settings, seeds in {"same": options.seeds, "tutorial": 1}.items():
        theirs = [gail(data, settings, seed, options) for seed in range(seeds)]
        for kind in ("best", "last"):
            score = normalized_score(
                np.array([one["returns"][kind] for one in theirs]), returns["teacher"], returns["random"]
            )
            show(f"GAIL, {settings} settings, {kind} policy", score, theirs[0]["steps"])
        for one in theirs:
            print("  validation:", ", ".join(f"{steps:,}: {score}" for steps, score in one["curve"]))


def show(name: str, score: Any, steps: int) -> None:
    low, high = score.ci95
    print(f"{name:<36} normalized {score.value:.3f} ({low:.3f} to {high:.3f})  {steps:,} steps", flush=True)


def gail(data: Dataset, settings: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run imitation's GAIL in its own process and virtual environment."""
    result = options.out / f"gail-{settings}-{seed}.json"
    if not result.exists():
        last = np.flatnonzero(np.append(np.diff(data.columns["episode"]), 1))
        np.savez(
            options.out / "recorded.npz",
            obs=data.observations(np.arange(len(data))),
            action=data.columns["action"],
            last_obs=data.next_observations(last),
            length=np.diff(last, prepend=-1),
        )
        command = [str(make_environment(VENV, NEEDS)), str(ROOT / "benchmarks/imitation/gail.py")]
        command += [str(options.out / "recorded.npz"), "--ppo", settings, "--steps", str(options.steps)]
        command += ["--eval-every", str(EVAL_EVERY), "--episodes", str(options.episodes), "--seed", str(seed)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit("imitation failed")
        result.write_text(done.stdout.splitlines()[-1], encoding="utf-8")
    output: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return output


if __name__ == "__main__":
    main()
