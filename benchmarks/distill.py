"""Compare samples per second of `distill` and of a plain PyTorch loop with the same network and data."""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from rldistill import (
    Cnn,
    CollectConfig,
    DistillConfig,
    EnvConfig,
    Linear,
    Mlp,
    NothingLearnedError,
    Policy,
    collect,
    distill,
    load_policy,
)
from rldistill.envs.spaces import spec_from_env
from rldistill.students import AnyStudent


def bare(dataset, student: AnyStudent, config: DistillConfig) -> float:  # type: ignore[no-untyped-def]
    """Fit with a minimal loop: shuffled batches of whole observations, forward, backward, AdamW."""
    network = student.build(dataset.spec)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, fused=True)
    rows = np.flatnonzero(~dataset.heldout)
    obs = dataset.observations(rows)
    labels = torch.from_numpy(dataset.columns["teacher"][rows]).softmax(-1)
    torch.set_num_threads(config.num_threads)
    started = time.perf_counter()
    for _ in range(config.epochs):
        for batch in torch.randperm(len(rows)).split(config.batch_size):
            output, _ = network(obs[batch])
            loss = F.cross_entropy(output.params, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return config.epochs * len(rows) / (time.perf_counter() - started)


def fit_rates(dataset, student: AnyStudent, config: DistillConfig, turns: int) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Return the median samples per second of the minimal loop and of `distill`, in turns."""
    limits, rates = [], []
    for _ in range(turns):
        limits.append(bare(dataset, student, config))
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            with suppress(NothingLearnedError):  # after as many steps
                distill(dataset, student, config, Path(folder) / "student", progress=False)
            rates.append(config.epochs * int((~dataset.heldout).sum()) / (time.perf_counter() - started))
    return float(np.median(limits)), float(np.median(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5, help="of both, alternating; the medians are compared")
    asked = parser.parse_args()
    torch.manual_seed(0)
    cartpole, pong = EnvConfig("CartPole-v1"), EnvConfig("ALE/Pong-v5")
    balancer, player = Mlp((64, 64)).build(spec_from_env(cartpole)).eval(), load_policy("zoo:pong-dqn")
    tasks: list[tuple[EnvConfig, Policy, list[AnyStudent], int, int]] = [
        (pong, player, [Cnn(), Linear()], 8_000, 3),
        (cartpole, balancer, [Mlp((64, 64))], 20_000, 20),
    ]
    for env, teacher, students, steps, epochs in tasks:
        with tempfile.TemporaryDirectory() as folder:
            dataset = collect(env, teacher, CollectConfig(steps=steps, epsilon=0.5), Path(folder) / "dataset")
            for student, precision in product(students, ("float32", "bfloat16")):
                config = DistillConfig(epochs=epochs, patience=0, num_threads=asked.threads, precision=precision)
                limit, ours = fit_rates(dataset, student, config, asked.turns)
                name = f"{env.id}, {type(student).__name__.lower()}, {precision}"
                print(f"{name}: bare loop in float32 {limit:,.0f}/s, distill {ours:,.0f}/s, ratio {ours / limit:.2f}")


if __name__ == "__main__":
    main()
