"""Gradient steps and samples to 95% of the teacher's lead in a new world, with and without Reptile.

    rldistill run examples/reptile.yaml
    python benchmarks/few_steps.py examples/reptile.yaml

The worlds are drawn from `evaluate.worlds` of the run file, which its recipe has not seen. "joint" begins with a
student that was distilled on the data of all worlds together.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.collection.collect import collect
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.core.worlds import Choice
from rldistill.data.dataset import Dataset
from rldistill.distillation.distill import distill
from rldistill.distillation.gradient import Trainer
from rldistill.envs.make import make_env
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.policies.agent import inference_threads
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Run
from rldistill.run.config import load_run
from rldistill.run.stages import load_teacher
from rldistill.students.storage import load_native

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SAMPLES = (8, 16, 32, 64, 128, 256)
STEPS_WITH_FEW_SAMPLES = 128
TARGET = 0.95


def held_out(run: Run, count: int) -> list[EnvConfig]:
    """Return environments of one world each, drawn from all kinds of `evaluate.worlds` by turns."""
    kinds, found = [*run.evaluate.worlds.values()], []
    for number in range(count):
        env = make_env(dataclasses.replace(run.env, worlds={**run.env.worlds, **kinds[number % len(kinds)]}))
        env.reset(seed=number)
        world = {name: Choice((value,)) for name, value in env.get_wrapper_attr("world").items()}
        found.append(dataclasses.replace(run.env, worlds=world))
    return found


class World:
    """One world: its data, and the score of a policy, 1 for the teacher and 0 for random play."""

    def __init__(self, run: Run, env: EnvConfig, teacher: Policy, folder: Path, episodes: int) -> None:
        config = dataclasses.replace(run.collect, steps=2 * max(SAMPLES))
        self.env, self.episodes = env, episodes
        self.data = collect(env, teacher, config, folder, seed=run.seed, mode="resume", progress=False)
        self.best = play(env, teacher, episodes, PlayConfig(side="teacher")).returns.mean()
        self.random = play(env, None, episodes).returns.mean()

    def score(self, policy: NetworkPolicy) -> float:
        policy.eval()
        own = play(self.env, policy, self.episodes).returns.mean()
        policy.train()
        return float((own - self.random) / (self.best - self.random))


def batches(trainer: Trainer, rows: Any, seed: int) -> Iterator[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    while True:
        for _, batch, output in trainer.outputs(rows, trainer.config.batch_size, rng):
            yield batch, output


def adapted(trainer: Trainer, world: World, rows: Any, counts: tuple[int, ...]) -> list[float]:
    """Return the scores after these numbers of gradient steps."""
    source, done, scores = batches(trainer, rows, trainer.seed), 0, []
    for count in counts:
        while done < count:
            trainer.step(*next(source), 0.0)
            done += 1
        scores.append(world.score(trainer.policy))
    return scores


def first(axis: tuple[int, ...], scores: Any) -> str:
    """Return the first place from which all mean scores reach the target."""
    below = np.flatnonzero(np.asarray(scores) < TARGET)
    index = 0 if not len(below) else int(below[-1]) + 1
    return str(axis[index]) if index < len(axis) else f"over {axis[-1]}"


def initial_students(run: Run, data: Dataset, name: str, seed: int) -> dict[str, NetworkPolicy | None]:
    folder = run.out / "students" / name / f"seed-{seed}"
    config = dataclasses.replace(run.distill, epochs=3, learning_rate=1e-3)
    joint = distill(
        data, run.students[name], config, run.out / f"joint-{seed}", seed=seed, mode="resume", progress=False
    )
    return {"new weights": None, "joint": joint, "reptile": load_native(folder)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--worlds", type=int, default=6)
    parser.add_argument("--episodes", type=int, default=10)
    options = parser.parse_args()
    run = load_run(options.file, options.overrides)
    name, teacher, data = next(iter(run.students)), load_teacher(run), run.read_dataset()
    steps: dict[str, list[list[float]]] = {}
    samples: dict[str, list[list[float]]] = {}
    with inference_threads(1):
        for number, env in enumerate(held_out(run, options.worlds)):
            world = World(run, env, teacher, run.out / f"world-{number}", options.episodes)
            for seed in run.seeds:
                for label, initial in initial_students(run, data, name, seed).items():
                    begin = partial(Trainer, world.data, run.students[name], run.distill, seed, initial)
                    rows = begin().train_rows
                    steps.setdefault(label, []).append(adapted(begin(), world, rows, STEPS))
                    order = np.random.default_rng(seed).permutation(rows)
                    few = [adapted(begin(), world, order[:count], (STEPS_WITH_FEW_SAMPLES,))[0] for count in SAMPLES]
                    samples.setdefault(label, []).append(few)
    for title, axis, results in (("gradient steps", STEPS, steps), ("samples", SAMPLES, samples)):
        print(f"| {title} | {' | '.join(map(str, axis))} | to {TARGET:.0%} |")
        print(f"| --- |{' --- |' * (len(axis) + 1)}")
        for label, scores in results.items():
            means = np.mean(scores, 0)
            print(f"| {label} | {' | '.join(f'{mean:.2f}' for mean in means)} | {first(axis, means)} |")
        print()


if __name__ == "__main__":
    main()
