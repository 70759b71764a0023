"""Compare fits to the same recorded steps of LunarLander: rldistill, d3rlpy's cloning, and a plain PyTorch loop.

All have an mlp of 32x32, batches of 256 and the same number of gradient steps. The clock runs over the fit, after
imports and collection. d3rlpy runs in `.venv-d3rlpy`, which is made at the first run, and plays episodes of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # torch.optim does so at its first step, for a second
from lunarlander_vs_imitation import ROOT, make_environment, row
from torch.nn import functional as F

from rldistill import (
    ActionNLL,
    CollectConfig,
    Dataset,
    DistillConfig,
    EnvConfig,
    EvaluateConfig,
    Mlp,
    NetworkPolicy,
    Term,
    collect,
    distill,
    evaluate,
    load_policy,
)
from rldistill.evaluation.statistics import normalized_score

ENV, STUDENT = EnvConfig("LunarLander-v3"), Mlp((32, 32))
NEEDS = ["torch", "d3rlpy==2.8.1", "Box2D", "pygame", "numpy"]


def plain(data: Dataset, config: DistillConfig, seed: int) -> NetworkPolicy:
    """Clone the recorded actions by a minimal loop."""
    torch.manual_seed(seed)
    network = STUDENT.build(data.spec)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate)
    rows = np.flatnonzero(~data.heldout)
    obs, actions = torch.as_tensor(data.observations(rows)), torch.as_tensor(data.columns["action"][rows])
    for _ in range(config.epochs):
        for index in torch.randperm(len(rows)).split(config.batch_size):
            output, _ = network(obs[index])
            loss = F.cross_entropy(output.params, actions[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def d3rlpy(data: Dataset, config: DistillConfig, seed: int, episodes: int) -> tuple[float, list[float]]:
    """Return the seconds and the returns of d3rlpy's DiscreteBC."""
    rows = np.flatnonzero(~data.heldout)
    terminals = data.columns["terminated"][rows].astype(np.float32)
    ends = np.append(data.columns["episode"][rows][1:] != data.columns["episode"][rows][:-1], True)
    arrays = {
        "observations": data.observations(rows),
        "actions": data.columns["action"][rows][:, None],
        "rewards": data.columns["reward"][rows][:, None].astype(np.float32),
        "terminals": terminals,
        "timeouts": (ends & (terminals == 0)).astype(np.float32),
    }
    python = make_environment(ROOT / ".venv-d3rlpy", NEEDS)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", **arrays)
        steps = config.epochs * -(-len(rows) // config.batch_size)
        command = [str(python), str(ROOT / "benchmarks/d3rlpy/clone.py"), f"{folder}/data.npz"]
        command += ["--gradient-steps", str(steps), "--episodes", str(episodes), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        sys.exit(f"d3rlpy failed:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return result["seconds"], result["returns"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_policy("zoo:lunarlander-ppo")
    kl = DistillConfig(patience=0)
    nll = DistillConfig(losses=(Term(ActionNLL()),), patience=0)
    configs = {"rldistill, forward_kl": kl, "rldistill, action_nll": nll}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = collect(ENV, teacher, CollectConfig(steps=asked.steps), folder / "dataset")
        policies = {"teacher": teacher, **{name: [] for name in (*configs, "plain PyTorch")}}
        seconds: dict[str, list[float]] = {name: [] for name in (*policies, "d3rlpy")}
        theirs = []
        for seed in range(asked.seeds):
            for name in (*configs, "plain PyTorch"):
                started = time.perf_counter()
                if name in configs:
                    policy = distill(data, STUDENT, configs[name], folder / name / str(seed), seed=seed, progress=False)
                else:
                    policy = plain(data, kl, seed)
                seconds[name].append(time.perf_counter() - started)
                policies[name].append(policy)
            spent, returns = d3rlpy(data, kl, seed, asked.episodes)
            seconds["d3rlpy"].append(spent)
            theirs.append(returns)
        evaluation = evaluate(ENV, policies, EvaluateConfig(asked.episodes, videos=False), folder / "evaluation")
    played = {name: np.array([run.returns for run in entry.runs]) for name, entry in evaluation.policies.items()}
    for name in (*configs, "plain PyTorch", "d3rlpy"):
        score = normalized_score(played.get(name, np.array(theirs)), played["teacher"], played["random"])
        row(name, seconds[name], score, data.num_steps)


if __name__ == "__main__":
    main()
