"""Long use: resident memory, file descriptors and zombies while steps are collected, fitted and evaluated.

The slope of the memory is that of a line through the second half of the samples, in MB for a million steps. The
dataset itself is no part of it: a collection writes it to the disk, and the fit begins with all of it in memory. An
evaluation keeps the actions of its episodes, so that its slope is at least their size.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
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

TEACHERS = {"CartPole-v1": "zoo:cartpole-ppo", "ALE/Pong-v5": "zoo:pong-dqn"}
INTERVAL_S = 1.0


def zombies() -> int:
    """Return the number of children of this process that have ended and that nothing has waited for."""
    found = 0
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split():
        stat = Path(f"/proc/{child}/stat").read_text(encoding="utf-8")
        found += stat.rpartition(")")[2].split()[0] == "Z"
    return found


class Samples:
    """Progress that measures this process from time to time; a unit of work is `steps` steps."""

    def __init__(self, steps: float = 1.0) -> None:
        self.steps, self.rows, self.next = steps, list[tuple[float, float, int]](), 0.0

    def update(self, done: int, total: int, score: float | None = None) -> None:
        """Take a sample if the last one is old enough."""
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + INTERVAL_S
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - no Path can be made of entries that vanish
        self.rows.append((done * self.steps / 1e6, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files))

    def show(self, name: str) -> None:
        """Print the slope of the memory over the second half, and the range of the file descriptors."""
        million, megabytes, files = (np.array(column) for column in zip(*self.rows, strict=True))
        half = million >= million[-1] / 2
        slope = np.polyfit(million[half], megabytes[half], 1)[0] if half.sum() > 1 else np.nan
        print(
            f"{name:<10}{million[-1] * 1e6:>12,.0f} steps {megabytes[0]:>8.1f} MB at first {megabytes[-1]:>8.1f} MB at "
            f"last {slope:>8.2f} MB/million, {files[half].min()} to {files[half].max()} file descriptors, "
            f"{zombies()} zombies", flush=True,
        )  # fmt: skip


def main() -> None:
    """Collect, fit, evaluate, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", choices=[*TEACHERS], default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps to collect; each epoch fits all of them")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--envs", type=int, default=64, help="environments of each of two streams")
    asked = parser.parse_args()
    env, teacher, execution = EnvConfig(asked.env), load_policy(TEACHERS[asked.env]), Execution(workers=asked.workers)
    collected, fitted = Samples(), Samples(asked.steps)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = CollectConfig(asked.steps, envs_per_stream=asked.envs, epsilon=0.1)
        data = collect(env, teacher, config, folder / "data", progress=collected, execution=execution)
        collected.show("collect")
        student = Cnn((8, 16, 16), (8, 4, 3), (4, 2, 1), (32,)) if data.spec.frames else Mlp((32,))
        fit = DistillConfig(epochs=asked.epochs, batch_size=4_096, patience=0)
        policy = distill(data, student, fit, folder / "student", progress=fitted)
        fitted.show("distill")
        del data
        played = Samples()
        settings = EvaluateConfig(asked.episodes, videos=False)
        result = evaluate(
            env, {"teacher": teacher, "student": policy}, settings, folder, progress=played, execution=execution
        )
        returns = np.concatenate([entry.returns for entry in result.policies.values()])
        if asked.env == "CartPole-v1":  # whose return is the length of an episode
            played.rows = [(row[0] * returns.mean(), *row[1:]) for row in played.rows]
        played.show("evaluate")


if __name__ == "__main__":
    main()
