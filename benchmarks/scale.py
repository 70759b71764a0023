"""Measure what more workers bring: two processes against one, Ray against processes, and a model of 1,000 workers.

A shared machine disturbs the time on the clock, so CPU times are compared: for two workers against one, those of the
critical path (this process and the busiest other one); for Ray against processes, those of all processes together,
after a first collection that starts Ray. The time on the clock of workers is also divided into that before the first
steps and a steady rate after them.

The model is the time of a collection of S streams of L steps on N workers:

    T(N) = server + start + ceil(S / N) * L * step + S * task + B * seal

with the measured CPU seconds of the process that workers are forked from, of a worker's start, of a step with its label
and its share of a block, of the driver for a task, and of the driver for one of the B blocks (its hash and its entry of
the manifest).
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from collect import compare_workers, descendants

from rldistill import CollectConfig, EnvConfig, Mlp, Policy, collect, spec_from_env
from rldistill.collection.collect import _plan, collect_shard, seal
from rldistill.collection.stream import play_streams
from rldistill.io.execution import Execution, Shard, run_jobs

STREAMS, STEPS, TASKS = 8, 1_000_000, 100


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of everything that it has started."""
    return time.process_time() + sum(descendants(with_ended=True).values())


def ended_seconds() -> float:
    """Return the CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compare_ray(env: EnvConfig, teacher: Policy, steps: int, repeat: int) -> None:
    """Print the CPU time and the time on the clock of a collection on Ray over those in two processes, in turns."""
    config = CollectConfig(steps, num_streams=STREAMS)
    backends = Execution("processes", 2), Execution("ray", 2)
    used: dict[str, list[tuple[float, float]]] = {"processes": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        small = CollectConfig(64, num_streams=2, envs_per_stream=2)
        collect(env, teacher, small, Path(folder) / "first", progress=False, execution=backends[1])
        print(f"the first collection on Ray, with its start: {time.perf_counter() - started:.1f} s", flush=True)
        for turn in range(repeat):
            for execution in backends:
                before, started = cpu_seconds(), time.perf_counter()
                place = Path(folder) / f"{execution.backend}-{turn}"
                collect(env, teacher, config, place, progress=False, execution=execution)
                used[execution.backend].append((cpu_seconds() - before, time.perf_counter() - started))
    for index, name in enumerate(("CPU", "clock")):
        pairs = zip(used["processes"], used["ray"], strict=True)
        ratios = ", ".join(f"{ray[index] / processes[index]:.2f}" for processes, ray in pairs)
        seconds = ", ".join(f"{key} {min(pair[index] for pair in pairs):.1f} s" for key, pairs in used.items())
        print(f"Ray over processes, {env.id}, {steps:,} steps, {name}: {seconds}; in turns {ratios}", flush=True)


def measure_constants(env: EnvConfig, teacher: Policy, steps: int, on_ray: bool) -> dict[str, float]:
    """Return the seconds of each part of the model."""
    config, constants = CollectConfig(steps, num_streams=STREAMS), dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        job = _plan(env, teacher, config, Path(folder), (0, 0, None), 1)[0]
        work = partial(play_streams, job)
        before = ended_seconds()
        subprocess.run([sys.executable, "-c", "import pandas, rldistill.collection.collect"], check=True)
        constants["server"] = ended_seconds() - before  # the process that workers are forked from
        for _ in range(2):  # which has started before the second time
            before = cpu_seconds()
            [*run_jobs(work, [[], []], Execution(workers=2))]
        constants["start"] = (cpu_seconds() - before) / 2
        started = time.process_time()
        collect_shard(env, teacher, config, Path(folder) / "dataset", Shard(1, 1), progress=False)
        constants["step"] = (time.process_time() - started) / steps
        started = time.process_time()
        manifest = seal(Path(folder) / "dataset")
        constants["seal"] = (time.process_time() - started) / len(manifest.blocks)
        execution = Execution("ray", 2) if on_ray else Execution(workers=2)
        started = time.process_time()
        [*run_jobs(work, [[]] * TASKS, execution)]
        constants["task"] = (time.process_time() - started) / TASKS
    return constants


def print_model(constants: dict[str, float]) -> None:
    """Print the times of a collection in streams of one block, which has 1,024 steps of 8 environments."""
    print(", ".join(f"{name} {seconds:.3g} s" for name, seconds in constants.items()))
    streams = math.ceil(STEPS / (8 * 1_024))
    for scale in (1, 100):
        for workers in (1, 10, 100, 1_000):
            rounds, total = math.ceil(streams * scale / workers), streams * scale
            work = rounds * 8 * 1_024 * constants["step"]
            seconds = constants["server"] + constants["start"] + work + total * (constants["task"] + constants["seal"])
            ideal = total * 8 * 1_024 * constants["step"] / workers
            efficiency = ideal / seconds
            print(f"{STEPS * scale:>13,} steps, {workers:>5,} workers: {seconds:>9,.0f} s, efficiency {efficiency:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=["LunarLander-v3", "highway-fast-v0"], action="append", help="both by default")
    parser.add_argument("--steps", type=int, default=100_000, help="steps of LunarLander; a fiftieth of highway-env")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--part", choices=["workers", "ray", "model"], action="append", help="all by default")
    asked = parser.parse_args()
    parts = asked.part or ["workers", "ray", "model"]
    for name in asked.env or ["LunarLander-v3", "highway-fast-v0"]:
        env, steps = EnvConfig(name), asked.steps if name == "LunarLander-v3" else asked.steps // 50
        teacher = Mlp((64, 64)).build(spec_from_env(env)).eval()
        print(f"== {name}", flush=True)
        if "workers" in parts:
            compare_workers(env, teacher, 2, steps, 16, asked.repeat)
        if "ray" in parts:
            compare_ray(env, teacher, steps, asked.repeat)
        if "model" in parts:
            print_model(measure_constants(env, teacher, steps // 4, on_ray="ray" in parts))


if __name__ == "__main__":
    main()
