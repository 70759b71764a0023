"""Long use: resident memory, file descriptors and zombies while steps are collected, fitted and evaluated.

A thread measures the process and its children. The first part of each stage is its warm-up: imports, caches and
buffers that fill, and heaps that find their size. The rest is cut into windows of equal work, and the slope is that of
a line through the least memory of each window, in MB for a million steps, since the memory goes up and down with each
block and batch; the standard error is that of the fit. The dataset itself is no part of it: a collection writes it to
the disk, and a fit begins with all of it in memory. An evaluation keeps a byte for each
action, and the results of its episodes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from rldistill import (
    Cnn,
    CollectConfig,
    DistillConfig,
    EnvConfig,
    EvaluateConfig,
    Execution,
    Mlp,
    collect,
    distill,
    evaluate,
    load_policy,
)
from rldistill.collection.collect import collect_shard
from rldistill.core.policy import Policy
from rldistill.io.execution import Shard

TEACHERS = {"CartPole-v1": "zoo:cartpole-ppo", "ALE/Pong-v5": "zoo:pong-dqn"}
INTERVAL_S, WINDOWS = 0.1, 12


def children() -> dict[str, str]:
    """Return the state of each child of this process, by its id; Z is a zombie."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            for child in (task / "children").read_text(encoding="utf-8").split():
                stat = Path(f"/proc/{child}/stat").read_text(encoding="utf-8")
                found[child] = stat.rpartition(")")[2].split()[0]
    return found


def resident(process: str) -> float:
    """Return the resident memory of a process in MB; 0 if it has ended."""
    try:
        return (
            int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1])
            * os.sysconf("SC_PAGE_SIZE")
            / 1e6
        )
    except OSError:
        return 0.0


class Samples:
    """Progress of a stage, while a thread measures the process; a unit of work is `steps` steps."""

    def __init__(self, name: str, steps: float = 1.0) -> None:
        self.name, self.steps = name, steps
        self.done = [(time.monotonic(), 0)]
        self.rows, self.zombies = list[tuple[float, float, int]](), 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.sample)

    def update(self, done: int, total: int, score: float | None = None) -> None:
        """Take the number of units at this time."""
        self.done.append((time.monotonic(), done))

    def sample(self) -> None:
        """Measure until the stage has ended."""
        while not self.ended.wait(INTERVAL_S):
            own = children()
            zombies = sum(state == "Z" for state in own.values())
            memory = sum(map(resident, ["self", *own]))
            self.rows.append((time.monotonic(), memory, len(os.listdir("/proc/self/fd"))))  # noqa: PTH208
            self.zombies = max(self.zombies, zombies)

    def __enter__(self) -> Samples:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()

    def show(self, warmup: float) -> None:
        """Print the growth in the warm-up, the slope after it, and the range of the file descriptors."""
        times, megabytes, files = (np.array(column) for column in zip(*self.rows, strict=True))
        millions = np.interp(times, *zip(*self.done, strict=True)) * self.steps / 1e6
        edges = np.linspace(warmup, 1, WINDOWS + 1) * millions[-1]
        windows = [np.flatnonzero((low <= millions) & (millions < high)) for low, high in pairwise(edges)]
        least = np.array([window[megabytes[window].argmin()] for window in windows if len(window)])
        (slope, _), covariance = np.polyfit(millions[least], megabytes[least], 1, cov=True)
        floors, files = megabytes[least], files[millions >= edges[0]]
        print(
            f"{self.name:<9}{millions[-1] * 1e6:>11,.0f} steps: {megabytes[0]:.0f} MB, {floors[0] - megabytes[0]:+.1f} "
            f"in the warm-up, then {slope:.2f} ± {covariance[0, 0] ** 0.5:.2f} MB/million; least in each window "
            f"{', '.join(f'{floor:.1f}' for floor in floors)}, largest {megabytes.max():.0f}; {files.min()} to "
            f"{files.max()} file descriptors, {self.zombies} zombies", flush=True,
        )  # fmt: skip


def main() -> None:
    """Collect, fit, evaluate, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", choices=[*TEACHERS], default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps to collect")
    parser.add_argument("--fit-steps", type=int, default=200_000, help="steps of the dataset of the fit")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--envs", type=int, default=64, help="environments of each of two streams")
    parser.add_argument("--block-steps", type=int, default=128)
    parser.add_argument("--warmup", type=float, default=0.3, help="first part of each stage")
    parser.add_argument("--part", choices=["collect", "distill", "evaluate"], action="append", help="all by default")
    asked = parser.parse_args()
    parts = asked.part or ["collect", "distill", "evaluate"]
    env, teacher, execution = EnvConfig(asked.env), load_policy(TEACHERS[asked.env]), Execution(workers=asked.workers)
    config = CollectConfig(asked.steps, envs_per_stream=asked.envs, block_steps=asked.block_steps, epsilon=0.1)
    policy: Policy = teacher
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "collect" in parts:  # as a shard, which does not read the dataset at its end
            with Samples("collect") as samples:
                collect_shard(env, teacher, config, folder / "c", Shard(1, 1), progress=samples, execution=execution)
            samples.show(asked.warmup)
        if "distill" in parts:
            data = collect(env, teacher, replace(config, steps=asked.fit_steps), folder / "d", progress=False)
            student = Cnn((8, 16, 16), (8, 4, 3), (4, 2, 1), (32,)) if data.spec.frames else Mlp((32,))
            fit = DistillConfig(epochs=asked.epochs, batch_size=4_096, patience=0)
            with Samples("distill", asked.fit_steps) as samples:
                policy = distill(data, student, fit, folder / "student", progress=samples)
            samples.show(asked.warmup)
            del data
        if "evaluate" in parts:
            policies, settings = {"teacher": teacher, "student": policy}, EvaluateConfig(asked.episodes, videos=False)
            with Samples("evaluate") as samples:
                result = evaluate(env, policies, settings, folder, progress=samples, execution=execution)
            if asked.env == "CartPole-v1":  # whose return is the length of an episode
                samples.steps = np.concatenate([entry.returns for entry in result.policies.values()]).mean()
            samples.show(asked.warmup)


if __name__ == "__main__":
    main()
