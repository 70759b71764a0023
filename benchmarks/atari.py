"""Measure the stages of a Pong run against their limits: collect, evaluate, and the fits of a linear student and a cnn.

Collect and evaluate are compared with emulators and teacher in sequence, fits with a minimal PyTorch loop. The stages
are measured in turns, and the medians of the ratios are printed, since a shared machine disturbs all of them alike.
`--json` stores each turn, for a comparison with another version.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from collect import collect_rates, limit_of
from distill import fit_rates
from evaluate import evaluate_rates
from matrix import CNN62
from rich.console import Console
from rich.table import Table

from rldistill import Cnn, CollectConfig, DistillConfig, EnvConfig, Linear, collect, load_policy
from rldistill.io.atomic import write_json

STUDENTS = {
    "linear on pixels": Linear(),
    "cnn of 59,390 parameters": Cnn(**{key: value for key, value in CNN62.items() if key != "type"}),
}
LIMITS = {"collect": "emulators and teacher", "evaluate": "emulators and teacher"} | dict.fromkeys(
    STUDENTS, "minimal loop"
)


def turn(steps: int, episodes: int, frames: int, epochs: int) -> Iterator[tuple[str, float, float]]:
    """Yield each stage with its rate and its limit, in steps or samples per second."""
    env, teacher = EnvConfig("ALE/Pong-v5"), load_policy("zoo:pong-dqn")
    rates = collect_rates(env, teacher, CollectConfig(steps=steps))
    yield "collect", rates.collect, rates.limit
    short = EnvConfig(env.id, {"max_num_frames_per_episode": frames})
    (played, emulator, inference, _), _ = evaluate_rates(short, teacher, episodes)
    yield "evaluate", played, limit_of(emulator, inference)
    with tempfile.TemporaryDirectory() as folder:
        config = CollectConfig(steps=steps, epsilon=0.5)
        dataset = collect(env, teacher, config, Path(folder) / "dataset", progress=False)
        for name, student in STUDENTS.items():
            limit, rate = fit_rates(dataset, student, DistillConfig(epochs=epochs, patience=0, batch_size=128), 1)
            yield name, rate, limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8_000, help="of each collection")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--frames", type=int, default=4_000, help="frames after which an episode of evaluation ends")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in LIMITS}
    for _ in range(asked.turns):
        for name, rate, limit in turn(asked.steps, asked.episodes, asked.frames, asked.epochs):
            found[name].append((rate, limit))
            print(f"{name}: {rate:,.0f}/s of {limit:,.0f}/s", flush=True)
    table = Table("stage", "per second", "limit", "limit is", "ratio", "ratios of the turns")
    for name, pairs in found.items():
        rate, limit = np.median(pairs, axis=0)
        ratios = [pair[0] / pair[1] for pair in pairs]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        table.add_row(name, f"{rate:,.0f}", f"{limit:,.0f}", LIMITS[name], f"{np.median(ratios):.2f}", each)
    Console(width=120).print(table)
    if asked.json is not None:
        write_json(asked.json, {name: {"rate_and_limit": pairs} for name, pairs in found.items()})


if __name__ == "__main__":
    main()
