"""Measure steps per second of `collect` relative to the limit 1 / (1 / emulator + 1 / inference).

With `--workers N`: the speed of `collect` and of full episodes with N processes relative to that with one, in turns. A
shared machine disturbs the time on the clock, so the CPU time of the critical path is compared too: that of this
process and that of the busiest other one.

The emulator plays full episodes with the same seeded resets and the collector's slots; inference is the teacher's
forward pass at the collector's batch on one thread.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill import Cnn, CollectConfig, EnvConfig, Execution, Mlp, Policy, collect
from rldistill.envs.seeding import episode_seed
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.policies.agent import inference_threads


def inference_rate(policy: Policy, batches: Sequence[NDArray[Any]], calls: int = 500) -> float:
    """Return the observations per second of `policy` on one thread, one batch at a time."""
    tensors = [torch.from_numpy(batch) for batch in batches]
    with inference_threads(1), torch.no_grad():
        started = time.perf_counter()
        for call in range(calls):
            policy(tensors[call % len(tensors)])
        return calls * len(batches[0]) / (time.perf_counter() - started)


def limit_of(*rates: float) -> float:
    """Return the rate of steps in sequence: 1 / sum 1 / rate."""
    return 1 / sum(1 / rate for rate in rates)


def descendants(with_ended: bool = False) -> dict[int, float]:
    """Return the CPU seconds of each process that this one, or one of them, has started, such as workers by a fork.

    With `with_ended`, those of their own ended children are added.
    """
    seconds, parents, end = dict[int, float](), dict[int, int](), 15 if with_ended else 13
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            pid = int(stat.parent.name)
            parents[pid], seconds[pid] = (
                int(fields[1]),
                sum(map(int, fields[11:end])) / os.sysconf("SC_CLK_TCK"),
            )
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return {pid: seconds[pid] for pid in own - {os.getpid()}}


class Timeline:
    """Progress that keeps the time of each report: steps begin after the start-up, and then come at a steady rate."""

    def __init__(self) -> None:
        self.started, self.reports = time.perf_counter(), list[tuple[float, int]]()

    def update(self, done: int, total: int, score: float | None = None) -> None:
        """Keep the time of a report."""
        if done:
            self.reports.append((time.perf_counter() - self.started, done))

    @property
    def steady_rate(self) -> float:
        """Units a second between the first report and the last."""
        (begin, first), (end, last) = self.reports[0], self.reports[-1]
        return (last - first) / (end - begin)

    def show(self, name: str) -> None:
        """Print the time before the first report, the rate, and the time after the last report."""
        rest = time.perf_counter() - self.started - self.reports[-1][0]
        begin = self.reports[0][0]
        print(f"{name}: {begin:.2f} s to the first steps, then {self.steady_rate:,.0f}/s, {rest:.2f} s after the last")


class CriticalPath:
    """CPU seconds of this process, and of the busiest of those that it starts."""

    def __enter__(self) -> CriticalPath:
        self.others: dict[int, float] = {}
        self.ended = threading.Event()
        self.before, self.started = time.process_time(), time.perf_counter()
        self.idle = descendants()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds, own = time.perf_counter() - self.started, time.process_time() - self.before
        self.ended.set()
        self.thread.join()
        self.cpu_seconds = own + max(self.others.values(), default=0.0)

    def sample(self) -> None:
        while not self.ended.wait(0.05):
            for pid, seconds in descendants().items():
                self.others[pid] = seconds - self.idle.get(pid, 0.0)


def compare_workers(env: EnvConfig, teacher: Policy, workers: int, steps: int, episodes: int, repeat: int) -> None:
    """Print the speed with several processes relative to that with one."""
    rates: dict[int, list[float]] = {1: [], workers: []}

    def collected(count: int, size: int = steps) -> None:
        with tempfile.TemporaryDirectory() as folder:
            config, execution, timeline = CollectConfig(steps=size), Execution(workers=count), Timeline()
            collect(env, teacher, config, Path(folder) / "dataset", progress=timeline, execution=execution)
            timeline.show(f"{count} workers, {size:,} steps")
            rates[count].append(timeline.steady_rate)

    collected(workers, steps // 10)  # starts the process that the workers are forked from

    def played(count: int) -> None:
        play(env, teacher, episodes, PlayConfig(env_workers=count))

    rates[workers].clear()
    play(env, teacher, workers, PlayConfig(env_workers=workers))  # starts the processes, which all later episodes share
    for run in (collected, played):
        paths: dict[int, list[CriticalPath]] = {1: [], workers: []}
        for _ in range(repeat):
            for count, runs in paths.items():
                with CriticalPath() as path:
                    run(count)
                runs.append(path)
        for name in ("seconds", "cpu_seconds"):
            alone, divided = (np.array([getattr(path, name) for path in runs]) for runs in paths.values())
            ratios = ", ".join(f"{ratio:.2f}" for ratio in alone / divided)
            print(
                f"{run.__name__}, {name}: {alone.min():.1f} with 1 worker, {divided.min():.1f} with {workers}, ratio "
                f"{alone.min() / divided.min():.2f} (in turns {ratios})", flush=True,
            )  # fmt: skip
    ratios = ", ".join(f"{many / one:.2f}" for one, many in zip(rates[1], rates[workers], strict=True))
    print(f"steady state of the collections on the clock: {workers} workers over 1 in turns {ratios}", flush=True)


@dataclass(frozen=True)
class Rates:
    """Steps per second of the emulators alone, of the teacher alone, and of `collect`; bytes of a step."""

    emulator: float
    inference: float
    collect: float
    memory_bytes: float
    disk_bytes: float

    @property
    def limit(self) -> float:
        """Rate of emulators and teacher in sequence."""
        return limit_of(self.emulator, self.inference)


def collect_rates(env: EnvConfig, teacher: Policy, config: CollectConfig) -> Rates:
    """Measure the emulators with random actions, the teacher on their observations, and `collect`."""
    vector = make_vector_env(
        env, config.envs_per_stream, lambda slot, nth: episode_seed(0, "collect", 0, 0, slot, nth), os.cpu_count() or 1
    )
    rng = np.random.default_rng(0)
    obs = vector.reset()
    vector.single_action_space.seed(0)
    rounds = config.steps // config.envs_per_stream
    actions = [
        np.stack([vector.single_action_space.sample() for _ in range(config.envs_per_stream)]) for _ in range(64)
    ]
    started = time.perf_counter()
    for step in range(rounds):
        obs = vector.step(actions[step % 64]).obs
    emulator = rounds * config.envs_per_stream / (time.perf_counter() - started)
    vector.close()
    inference = inference_rate(teacher, [rng.permutation(obs) for _ in range(16)])
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        dataset = collect(env, teacher, config, Path(folder) / "dataset")
        ours = len(dataset) / (time.perf_counter() - started)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
    arrays = dataset.obs.nbytes + sum(column.nbytes for column in dataset.columns.values())
    return Rates(emulator, inference, ours, arrays / len(dataset), size / len(dataset))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="ALE/Pong-v5")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    env = EnvConfig(asked.env)
    spec = spec_from_env(env)
    config = CollectConfig(steps=asked.steps)
    student = Cnn((32, 64, 64), (8, 4, 3), (4, 2, 1), (512,)) if spec.frames else Mlp()
    teacher = student.build(spec).eval()

    if asked.workers > 1:
        compare_workers(env, teacher, asked.workers, asked.steps, asked.episodes, asked.repeat)
        return

    rates = collect_rates(env, teacher, config)
    print(f"emulator {rates.emulator:,.0f}/s, inference {rates.inference:,.0f}/s, limit {rates.limit:,.0f}/s")
    print(f"collect {rates.collect:,.0f}/s, ratio {rates.collect / rates.limit:.2f}")
    memory, disk = rates.memory_bytes / 1e3, rates.disk_bytes / 1e3
    print(f"1M transitions, extrapolated: {memory:.2f} GB in memory, {disk:.2f} GB on disk")


if __name__ == "__main__":
    main()
