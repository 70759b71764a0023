"""Samples a second of `distill` over a bare PyTorch loop with the same network, batch and data in memory."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from rldistill import Cnn, CollectConfig, DistillConfig, EnvConfig, Mlp, Term, collect, distill
from rldistill.envs.vector import spec_from_env
from rldistill.losses import ForwardKL
from rldistill.students import AnyStudent


def bare(dataset, student: AnyStudent, config: DistillConfig) -> float:  # type: ignore[no-untyped-def]
    """The least that a person would write: shuffled batches of whole observations, forward, backward, AdamW."""
    network = student.build(dataset.spec)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, fused=True)
    rows = np.flatnonzero(~dataset.heldout)
    obs = dataset.observations(rows)
    labels = torch.from_numpy(dataset.columns["teacher"][rows]).softmax(-1)
    torch.set_num_threads(config.threads)
    started = time.perf_counter()
    for _ in range(config.epochs):
        for batch in torch.randperm(len(rows)).split(config.batch_size):
            output, _ = network(obs[batch])
            loss = F.cross_entropy(output.params, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return config.epochs * len(rows) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    for env_id, steps, student in [("ALE/Pong-v5", 8_000, Cnn()), ("CartPole-v1", 20_000, Mlp((64, 64)))]:
        env = EnvConfig(env_id)
        torch.manual_seed(0)
        teacher = student.build(spec_from_env(env)).eval()
        config = DistillConfig(losses=(Term(ForwardKL(1.0)),), epochs=5, patience=0, threads=asked.threads)
        with tempfile.TemporaryDirectory() as folder:
            dataset = collect(env, teacher, CollectConfig(steps=steps, epsilon=0.5), Path(folder) / "dataset")
            limit = bare(dataset, student, config)
            started = time.perf_counter()
            distill(dataset, student, config, Path(folder) / "student")
            ours = config.epochs * int((~dataset.heldout).sum()) / (time.perf_counter() - started)
        print(f"{env_id}: bare {limit:,.0f}/s, distill {ours:,.0f}/s, ratio {ours / limit:.2f}")


if __name__ == "__main__":
    main()
