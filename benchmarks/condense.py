"""Score of students that learn from K states chosen by `condense`, and from as many random ones.

    python benchmarks/condense.py
    python benchmarks/condense.py --env LunarLander-v3 --teacher zoo:lunarlander-ppo --out runs/condense-lander

All have the same held-out states. A random choice differs from seed to seed, one by `condense` does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import rldistill as rd

MLP = rd.Mlp((64, 64))


def students(whole: rd.Dataset, source: Path, keep: int, seeds: int, out: Path) -> dict[str, list[rd.Policy]]:
    """Return the students of `keep` states, one for each training seed, by the name of the choice."""
    few = {
        f"{'' if weighted else 'un'}weighted-{keep}": rd.condense(
            source, out / f"condensed-{keep}-{weighted}", keep, weighted=weighted, mode="overwrite", progress=False
        )
        for weighted in (True, False)
    }
    train, heldout = np.flatnonzero(~whole.heldout), np.flatnonzero(whole.heldout)
    spread = heldout[np.linspace(0, len(heldout) - 1, min(keep, len(heldout))).astype(int)]
    config = rd.DistillConfig(epochs=400, patience=0, batch_size=32)
    found: dict[str, list[rd.Policy]] = {name: [] for name in (*few, f"random-{keep}")}
    for seed in range(seeds):
        mask = np.zeros(len(whole), bool)
        mask[np.random.default_rng(seed).choice(train, keep, replace=False)] = mask[spread] = True
        for name, data in zip(found, (*few.values(), whole.take(mask)), strict=True):
            folder = out / "students" / name / f"seed-{seed}"
            try:
                student = rd.distill(data, MLP, config, folder, seed=seed, mode="resume", progress=False)
                found[name].append(student)
            except rd.NothingLearnedError:
                print(f"{name}, seed {seed}: the student learned nothing and is not evaluated", flush=True)
    return {name: own for name, own in found.items() if own}


def main() -> None:
    """Print a line for each choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--teacher", default="zoo:cartpole-ppo")
    parser.add_argument("--keep", default="16,64,256,1024")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("runs/condense"))
    options = parser.parse_args()
    env, teacher = rd.EnvConfig(options.env), rd.load_policy(options.teacher)
    config = rd.CollectConfig(steps=20_000, epsilon=0.1, features=True)
    whole = rd.collect(env, teacher, config, options.out / "dataset", mode="resume", progress=False)
    policies: dict[str, rd.Policy | list[rd.Policy]] = {"teacher": teacher}
    for keep in map(int, options.keep.split(",")):
        policies |= students(whole, options.out / "dataset", keep, options.seeds, options.out)
    settings = rd.EvaluateConfig(episodes=options.episodes, videos=False)
    found = rd.evaluate(env, policies, settings, options.out, progress=False)
    for name, entry in found.policies.items():
        low, high = entry.mean.ci95 or (entry.mean.value,) * 2
        kept = "" if entry.normalized is None else f"{entry.normalized.value:.3f} {entry.normalized.ci95}"
        print(f"{name:<16} return {entry.mean.value:7.1f} ({low:.1f} to {high:.1f})  score {kept}", flush=True)


if __name__ == "__main__":
    main()
