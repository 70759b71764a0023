"""Measure the stages of a Pong run against their limits: collect, evaluate, and the fits of a linear student and a cnn.

Collect and evaluate are compared with emulators and teacher in sequence, fits with a minimal PyTorch loop, and with
fits in the way of before: a linear student with the dense product of all pixels, a cnn in float32. The stages are
measured in turns, and the medians of the ratios are printed, since a shared machine disturbs all of them alike. The
fits of before and now are compared by CPU seconds. `--json` stores each turn, for a comparison with another version.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from collect import collect_rates, limit_of
from distill import fit_rates
from evaluate import evaluate_rates
from matrix import CNN62
from rich.console import Console
from rich.table import Table

from rldistill import (
    Cnn,
    CollectConfig,
    Dataset,
    DistillConfig,
    EnvConfig,
    Linear,
    NothingLearnedError,
    collect,
    distill,
    load_policy,
)
from rldistill.core.policy import Precision
from rldistill.io.atomic import read_jsonl, write_json
from rldistill.students import AnyStudent

STUDENTS = {
    "linear on pixels": Linear(),
    "cnn of 59,390 parameters": Cnn(**{key: value for key, value in CNN62.items() if key != "type"}),
}
LIMITS = {"collect": "emulators and teacher", "evaluate": "emulators and teacher"} | dict.fromkeys(
    STUDENTS, "minimal loop"
)


def fit(dataset: Dataset, student: AnyStudent, precision: Precision, epochs: int) -> tuple[float, float]:
    """Return the CPU seconds of a fit, and its last held-out loss."""
    config = DistillConfig(epochs=epochs, patience=0, batch_size=128, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        with suppress(NothingLearnedError):  # after as many steps
            distill(dataset, student, config, Path(folder) / "student", progress=False)
        seconds = time.process_time() - started
        rows = read_jsonl(Path(folder) / "student" / "metrics.jsonl")
    return seconds, [row["heldout_loss"] for row in rows if "heldout_loss" in row][-1]


def compare_fits(steps: int, epochs: int, turns: int) -> None:
    """Print the CPU seconds of fits as before, and of those of today."""
    env, teacher = EnvConfig("ALE/Pong-v5"), load_policy("zoo:pong-dqn")
    with tempfile.TemporaryDirectory() as folder:
        data = collect(env, teacher, CollectConfig(steps=steps, epsilon=0.5), Path(folder) / "dataset", progress=False)
        for name, student in STUDENTS.items():
            ratios, last = [], []
            dense = replace(data, memory_gb=0.0) if isinstance(student, Linear) else data
            for _ in range(turns):
                before, now = fit(dense, student, "float32", epochs), fit(data, student, "auto", epochs)
                ratios.append(before[0] / now[0])
                last = [before, now]
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            (seconds, loss), (seconds_now, loss_now) = last
            print(
                f"{name}, {epochs} epochs of {steps:,} steps: {seconds:.1f} s of CPU to a held-out loss of {loss:.4f} "
                f"before, {seconds_now:.1f} s to {loss_now:.4f} now; ratio {np.median(ratios):.2f} (turns {each})"
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
    parser.add_argument("--fits", action="store_true", help="compare the fits of before and now alone")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.fits:
        compare_fits(asked.steps, asked.epochs, asked.turns)
        return
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
