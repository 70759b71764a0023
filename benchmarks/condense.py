"""Score of students that learn from K states chosen by `condense`, from as many random ones, and from all states.

    python benchmarks/condense.py
    python benchmarks/condense.py --env LunarLander-v3 --teacher zoo:lunarlander-ppo --out runs/condense-lander
    python benchmarks/condense.py --env ALE/Pong-v5 --teacher zoo:pong-dqn --student features --out runs/condense-pong

Choices of equal size have the same held-out states. A random choice differs from seed to seed, one by `condense` does
not. An epoch of few states is short: a fit has as many epochs as give `--samples` in all, and at most `--epochs`.
A benchmark that was interrupted goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import rldistill as rd

STUDENTS = {
    "mlp": lambda teacher: rd.Mlp((64, 64)),
    "features": lambda teacher: rd.Linear(features=rd.TeacherFeatures().load(teacher)),
    "cnn": lambda teacher: rd.Cnn((16, 32, 16), (8, 4, 3), (4, 2, 1), (28,)),
}


def choices(whole: rd.Dataset, keep: int, options: argparse.Namespace) -> dict[str, list[rd.Dataset]]:
    """Return the data of `keep` states, for each training seed, by the name of the choice."""
    found = {}
    for weighted in (False, True)[: 1 + options.weighted]:
        folder = options.out / f"condensed-{keep}-{weighted}"
        if (folder / "manifest.json").exists():
            few = rd.Dataset.read([folder])
        else:
            few = rd.condense(options.out / "dataset", folder, keep, weighted=weighted, progress=False)
        found[f"{'' if weighted else 'un'}weighted-{keep}"] = [few] * options.seeds
    train, heldout = np.flatnonzero(~whole.heldout), np.flatnonzero(whole.heldout)
    spread = heldout[np.linspace(0, len(heldout) - 1, min(keep, len(heldout))).astype(int)]
    random = []
    for seed in range(options.seeds):
        mask = np.zeros(len(whole), bool)
        mask[np.random.default_rng(seed).choice(train, keep, replace=False)] = mask[spread] = True
        random.append(whole.take(mask))
    return found | {f"random-{keep}": random}


def students(name: str, data: list[rd.Dataset], teacher: rd.Policy, options: argparse.Namespace) -> list[rd.Policy]:
    """Return the students of one choice, one for each training seed that learned something."""
    epochs = min(options.epochs, -(-options.samples // int((~data[0].heldout).sum())))
    config = rd.DistillConfig(epochs=epochs, patience=0, batch_size=32)
    found: list[rd.Policy] = []
    for seed, own in enumerate(data):
        folder = options.out / "students" / name / f"seed-{seed}"
        try:
            student = STUDENTS[options.student](teacher)
            found.append(rd.distill(own, student, config, folder, seed=seed, mode="resume", progress=False))
        except rd.NothingLearnedError:
            print(f"{name}, seed {seed}: the student learned nothing and is not evaluated", flush=True)
    return found


def main() -> None:
    """Print a line for each choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--teacher", default="zoo:cartpole-ppo")
    parser.add_argument("--student", choices=STUDENTS, default="mlp")
    parser.add_argument("--keep", default="16,64,256,1024")
    parser.add_argument("--weighted", action="store_true", help="also with --weighted of `condense`")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("runs/condense"))
    options = parser.parse_args()
    env, teacher = rd.EnvConfig(options.env), rd.load_policy(options.teacher)
    config = rd.CollectConfig(steps=options.steps, epsilon=0.1, features=True)
    whole = rd.collect(env, teacher, config, options.out / "dataset", mode="resume", progress=False)
    data = {f"all-{int((~whole.heldout).sum())}": [whole] * options.seeds}
    for keep in map(int, options.keep.split(",")):
        data |= choices(whole, keep, options)
    policies = {name: students(name, own, teacher, options) for name, own in data.items()}
    settings = rd.EvaluateConfig(episodes=options.episodes, videos=False)
    learned: dict[str, rd.Policy | list[rd.Policy]] = {name: own for name, own in policies.items() if own}
    found = rd.evaluate(env, {"teacher": teacher, **learned}, settings, options.out, progress=False)
    for name, entry in found.policies.items():
        low, high = entry.mean.ci95 or (entry.mean.value,) * 2
        kept = "" if entry.normalized is None else f"{entry.normalized.value:.3f} {entry.normalized.ci95}"
        print(f"{name:<16} return {entry.mean.value:7.1f} ({low:.1f} to {high:.1f})  score {kept}", flush=True)


if __name__ == "__main__":
    main()
