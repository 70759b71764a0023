"""Measure environment steps to 90% of the teacher: distillation (teacher's data included) and reward alone.

The student's steps are the smallest budget, of the teacher's and its own, from which its mean over the training seeds
reaches a normalised score of 0.9; the control, the same network, is taken to need those at which an evaluation of its
own first does, the median over the seeds. One that never does within ten times the student's steps is censored there,
so that the ratio is a lower bound. Every part goes on after an interruption. `--quick` is one training seed of
LunarLander.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from rldistill import Policy
from rldistill.envs.spaces import adapt_env
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.io.atomic import read_json, read_jsonl, write_json
from rldistill.io.progress import track
from rldistill.recipes import from_reward
from rldistill.recipes.job import Run, StudentJob
from rldistill.run.config import read_run
from rldistill.run.jobs import load_teacher
from rldistill.run.stages import run_collect, run_distill
from rldistill.students.storage import load_native

ENOUGH = 0.9
EPISODES = 20

# `trained` is what the teacher itself took; with `rounds` of DAgger, these take half of a budget. PPO's settings are
# those of rl-baselines3-zoo.
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "LunarLander": {
        "budgets": [1_000, 2_000, 4_000, 6_000, 8_000, 12_000, 20_000],
        "seeds": 5,
        "agent": "ppo/LunarLander-v2_1",
        "trained": 1_000_000,
        "run": {
            "env": {"id": "LunarLander-v3"},
            "collect": {"gamma": 0.999},
            "distill": {"epochs": 40, "batch_size": 64, "learning_rate": 2e-3},
            "students": {"mlp": {"type": "mlp", "hidden": [32, 32]}},
            "ppo": {"num_envs": 16, "rollout_length": 1024, "epochs": 4, "gamma": 0.999, "gae_lambda": 0.98,
                    "entropy_coef": 0.01, "eval_every": 20_000},
        },
    },
    "Pong": {
        "budgets": [48_000, 72_000, 96_000],
        "rounds": 2,
        "seeds": 3,
        "trained": 6_300_000,
        "run": {
            "env": {"id": "ALE/Pong-v5"},
            "teacher": "zoo:pong-dqn",
            "collect": {"epsilon": 0.05},
            "distill": {"epochs": 8, "batch_size": 64, "learning_rate": 1.5e-3},
            "students": {"cnn": {"type": "cnn", "channels": [16, 32, 32], "kernels": [8, 4, 3], "strides": [4, 2, 1],
                                 "hidden": [24]}},
            "ppo": {"num_envs": 8, "rollout_length": 128, "epochs": 4, "batch_size": 256, "learning_rate": 2.5e-4,
                    "schedule": "linear", "clip_range": 0.1, "entropy_coef": 0.01, "eval_every": 50_000},
        },
    },
}  # fmt: skip


def planned(name: str, out: Path, teacher: str, steps: int, seed: int) -> Run:
    """Distill with one budget and one seed for data and weights."""
    about = ENVIRONMENTS[name]["run"]
    document = {
        **about,
        "teacher": teacher,
        "seed": seed,
        "seeds": [seed],
        "folder": str(out / name / str(steps) / str(seed)),
    }
    rounds = ENVIRONMENTS[name].get("rounds", 0)
    if rounds:
        document["recipe"] = {"name": "dagger", "rounds": rounds, "steps_per_round": steps // 2 // rounds}
    document["collect"] = {**about["collect"], "steps": steps // 2 if rounds else steps}
    return read_run(document | {"name": name})


def scores(run: Run, teacher: Policy, policy: Policy) -> float:
    """Return a policy's normalized score on test episodes."""
    worst, own, best = (
        float(play(adapt_env(run.env, teacher), one, EPISODES, PlayConfig(run.seed)).returns.mean())
        for one in (None, policy, teacher)
    )
    return (own - worst) / (best - worst)


def distilled(name: str, out: Path, teacher: str, seeds: range) -> tuple[int | None, dict[int, list[float]]]:
    """Return the smallest sufficient budget, and the scores of all seeds for each budget up to it."""
    found: dict[int, list[float]] = {}
    for steps in ENVIRONMENTS[name]["budgets"]:
        found[steps] = []
        for seed in seeds:
            run = planned(name, out, teacher, steps, seed)
            file = run.out / "score.json"
            if not file.exists():
                run_collect(run, mode="resume")
                run_distill(run, mode="resume")
                (student,) = (load_native(folder) for folder in run.out.glob(f"students/*/seed-{seed}"))
                write_json(file, {"normalised": scores(run, load_teacher(run), student)})
            found[steps].append(read_json(file)["normalised"])
        mean = sum(found[steps]) / len(found[steps])
        print(f"{name}: {steps:,} steps: {mean:.3f} of the teacher ({len(seeds)} seeds)", flush=True)
        if mean >= ENOUGH:
            return steps, found
    return None, found


def from_reward_alone(name: str, out: Path, teacher: str, steps: int, seed: int) -> int | None:
    """The steps at which the control first has enough; None if it has not within ten times `steps`."""
    run = planned(name, out, teacher, steps, seed)
    loaded = load_teacher(run)
    (student,) = run.students
    with track(f"{name}: control, seed {seed}", "steps") as report:
        from_reward.train_control(StudentJob(run, loaded, None, student, seed), steps, "resume", report)
    worst, best = (float(from_reward.validation_returns(run, loaded, one).mean()) for one in (None, loaded))
    for row in read_jsonl(run.out / "controls" / student / f"seed-{seed}" / "metrics.jsonl"):
        if "score" in row and (row["score"] - worst) / (best - worst) >= ENOUGH:
            return int(row["step"])
    return None


def row_of(name: str, out: Path, agents: Path, num_seeds: int) -> dict[str, Any]:
    about = ENVIRONMENTS[name]
    teacher = str(agents / about["agent"]) if "agent" in about else about["run"]["teacher"]
    steps, found = distilled(name, out, teacher, range(num_seeds))
    row: dict[str, Any] = {"env": name, "student_steps": steps, "scores": found, "seeds": num_seeds}
    if steps is None:
        return row | {"control_steps": None, "ratio": None, "censored": None}
    taken = [from_reward_alone(name, out, teacher, steps, seed) for seed in range(num_seeds)]
    most = from_reward.CENSORED * steps
    control = median(most if one is None else one for one in taken)
    return row | {
        "control_steps": control,
        "ratio": control / steps,
        "censored": sum(one is None for one in taken),
        "ratio_with_teacher": control / (steps + about["trained"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one training seed of LunarLander")
    parser.add_argument("--only", choices=[*ENVIRONMENTS])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/sample-efficiency"))
    parser.add_argument("--agents", type=Path, default=Path("../shared/teachers/sb3"), help="rl-baselines3-zoo agents")
    asked = parser.parse_args()
    names = ["LunarLander"] if asked.quick else [asked.only] if asked.only else [*ENVIRONMENTS]
    rows = []
    for name in names:
        rows.append(row_of(name, asked.out, asked.agents, 1 if asked.quick else ENVIRONMENTS[name]["seeds"]))
        if asked.json is not None:
            write_json(asked.json, {"rows": rows})
    table = Table("env", "distilled", "from reward alone", "ratio", "with the teacher's training", "censored", "seeds")
    for row in rows:
        if row["student_steps"] is None:
            table.add_row(row["env"], "not enough", *["–"] * 4, str(row["seeds"]))
            continue
        least = "≥ " if row["censored"] * 2 > row["seeds"] else ""
        table.add_row(
            row["env"], f"{row['student_steps']:,}", f"{least}{row['control_steps']:,}", f"{least}{row['ratio']:.1f}",
            f"{least}{row['ratio_with_teacher']:.3f}", f"{row['censored']} of {row['seeds']}", str(row["seeds"]),
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
