"""Measure normalized scores with intervals for environments x students x losses x recipes.

Teachers are those of a folder of rl-baselines3-zoo agents where it is there, else they are trained here first. Every
cell is a run that goes on after an interruption. `--quick` is one training seed, no Pong, and nothing that takes long.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rldistill import (
    EnvConfig,
    EvaluateConfig,
    Policy,
    RLDistillError,
    TrainConfig,
    train_teacher,
)
from rldistill.data.manifest import Manifest
from rldistill.evaluation.episodes import PolicyRuns
from rldistill.evaluation.evaluate import evaluate
from rldistill.io.atomic import read_json, write_json
from rldistill.io.progress import track
from rldistill.recipes.job import Run, StudentJob
from rldistill.run.config import read_run
from rldistill.run.jobs import load_teacher
from rldistill.run.stages import run_collect

for folder in ("features", "teachers", "."):  # for screen_bits:Basic, estool:walker and metaworld_tasks:make
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / folder))

PPO = {"algorithm": "PPO", "num_envs": 8, "eval_every": 50_000}
SMALL = {"epochs": 25, "batch_size": 64, "learning_rate": 3e-3}
MIDDLE = {"epochs": 20, "batch_size": 256, "learning_rate": 2e-3}
# Warm-started rounds begin at the full rate, which at first undoes some of what the round before had learned.
PATIENT = MIDDLE | {"patience": 0}
PIXELS = {"epochs": 8, "batch_size": 64, "learning_rate": 1.5e-3, "num_threads": 2}

EXPERT = "berkeley:Expert@more/mujoco-berkeley"
MT10 = (
    "reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3",
    "button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3",
)  # fmt: skip
ROUNDS = {"reach-v3": (12_000, 4, 6_000), "push-v3": (12_000, 4, 6_000), "pick-place-v3": (12_000, 4, 6_000),
          "door-open-v3": (12_000, 6, 8_000)}  # fmt: skip
"""Steps, rounds and steps of each round of the tasks of MT10 that need more than the others."""

# For each environment: its id, the zoo agent or how a teacher is trained, what `offline` collects at once, and what
# `dagger` collects at first and in each of its rounds, and by how many episodes it chooses among these, if it does; how
# `ppd` learns, where there is reward to learn from besides.
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "CartPole": {"id": "CartPole-v1", "agent": "dqn/CartPole-v1", "steps": 10_000, "rounds": (4_000, 3, 2_000),
                 "train": PPO | {"total_steps": 100_000}, "fit": SMALL},
    "LunarLander": {"id": "LunarLander-v3", "agent": "ppo/LunarLander-v2", "steps": 20_000, "rounds": (8_000, 4, 3_000),
                    "train": PPO | {"total_steps": 1_000_000}, "fit": MIDDLE, "gamma": 0.999},
    "Acrobot": {"id": "Acrobot-v1", "steps": 20_000, "rounds": (8_000, 4, 3_000),
                "train": PPO | {"total_steps": 200_000}, "fit": SMALL},
    "BipedalWalker": {"id": "BipedalWalker-v3", "agent": "ppo/BipedalWalker-v3", "steps": 100_000,
                      "rounds": (40_000, 4, 15_000), "wide": (80_000, 2, 30_000),
                      "train": PPO | {"total_steps": 2_000_000}, "fit": PATIENT | {"epochs": 60},
                      "weight": {"type": "linear", "start": 5.0, "end": 0.5},
                      "ppo": {"total_steps": 200_000, "num_envs": 16, "rollout_length": 512, "batch_size": 256,
                              "epochs": 10,
                              "learning_rate": 1e-3, "schedule": "linear", "max_grad_norm": 5.0, "eval_every": 25_000,
                              "eval_episodes": 40}},
    "HalfCheetah": {"id": "HalfCheetah-v5", "agent": "sac/HalfCheetah-v3", "steps": 100_000,
                    "rounds": (40_000, 4, 15_000), "fit": PATIENT | {"epochs": 40},
                    "train": {"algorithm": "SAC", "num_envs": 1, "total_steps": 300_000}},
    "Hopper": {"id": "Hopper-v5", "agent": "tqc/Hopper-v3", "steps": 100_000, "rounds": (40_000, 4, 15_000),
               "fit": MIDDLE, "train": {"algorithm": "TQC", "num_envs": 1, "total_steps": 300_000}},
    "Pong": {"id": "ALE/Pong-v5", "zoo": "zoo:pong-dqn", "episodes": 30, "seeds": 3, "steps": 100_000,
             "rounds": (50_000, 2, 24_000), "many": (60_000, 16, 14_992, 30), "fit": PIXELS},
    # Found by evolution strategies: it never falls, unlike the PPO agent above.
    "Walker": {"id": "BipedalWalker-v3", "module": "estool:walker@estool/biped.pepg.1.96.best.json",
               "episodes": 60, "steps": 40_000, "rounds": (16_000, 8, 5_000, 10), "many": (16_000, 12, 5_000, 60),
               "fit": PATIENT | {"epochs": 30}},
    # The same without the ten distances to the ground, which matter little where it is nearly even.
    "WalkerNoLidar": {"id": "BipedalWalker-v3", "module": "estool:walker@estool/biped.pepg.1.96.best.json",
                      "views": {"student": [{"name": "PadObservation", "kwargs": {"segments": [[14, 0, 10]]}}]},
                      "episodes": 60, "steps": 40_000, "rounds": (16_000, 8, 5_000), "many": (16_000, 12, 5_000, 60),
                      "fit": PATIENT | {"epochs": 40, "batch_size": 64, "learning_rate": 1e-2}},
    "Hardcore": {"id": "BipedalWalkerHardcore-v3", "module": "estool:walker@estool/bipedhard.256.16.v4.json",
                 "episodes": 60, "steps": 40_000, "rounds": (16_000, 8, 5_000, 10), "long": (40_000, 8, 20_000, 30),
                 "fit": PATIENT | {"epochs": 30}},
    "Walker2d": {"id": "Walker2d-v5", "module": f"{EXPERT}/Walker2d.safetensors", "episodes": 60, "seeds": 3,
                 "steps": 40_000, "rounds": (16_000, 4, 6_000), "many": (16_000, 12, 6_000, 60),
                 "fit": PATIENT | {"epochs": 40}},
    # Trained on version 2, whose observations also have the contact forces of the world, which are 0.
    "Ant": {"id": "Ant-v5", "module": f"{EXPERT}/Ant.safetensors", "episodes": 60, "seeds": 3, "steps": 40_000,
            "views": {"teacher": [{"name": "PadObservation", "kwargs": {"segments": [[27, 6, 0], [78, 0, 0]]}}]},
            "rounds": (16_000, 4, 6_000), "many": (16_000, 8, 6_000, 30), "fit": PATIENT | {"epochs": 40}},
    # The same without the contact forces, which the teacher does not see.
    "AntNoContacts": {"id": "Ant-v5", "module": f"{EXPERT}/Ant.safetensors", "episodes": 60, "steps": 40_000,
                      "views": {"teacher": [{"name": "PadObservation",
                                             "kwargs": {"segments": [[27, 6, 0], [78, 0, 0]]}}],
                                "student": [{"name": "PadObservation", "kwargs": {"segments": [[27, 0, 78]]}}]},
                      "rounds": (16_000, 4, 6_000), "many": (16_000, 6, 8_000, 20),
                      "fit": PATIENT | {"epochs": 40, "batch_size": 64, "learning_rate": 5e-3}},
    **{f"MT10-{task}": {"id": "metaworld_tasks:make", "kwargs": {"task": task, "horizon": 250}, "episodes": 60,
                        "module": f"metaworld_tasks:{task.replace('-', '_')}", "steps": 12_000,
                        "rounds": ROUNDS.get(task, (6_000, 3, 2_000)),
                        "fit": PATIENT | {"epochs": 10, "learning_rate": 4e-3}} for task in MT10},
}  # fmt: skip

REGIONS = [["opponent", 14, 77, 8, 11], ["ball", 14, 77, 11, 73], ["player", 14, 77, 73, 76]]
LINEAR, MLP32, MLP64 = {"type": "linear"}, {"type": "mlp", "hidden": [32, 32]}, {"type": "mlp", "hidden": [64, 64]}
MLP128 = {"type": "mlp", "hidden": [128, 128]}


def tanh(*sizes: int) -> dict[str, Any]:
    """Return an mlp of these hidden sizes with tanh."""
    return {"type": "mlp", "hidden": [*sizes], "activation": "tanh"}


TANH64, TANH128, TANH256 = tanh(64, 64), tanh(128, 128), tanh(256, 256)
# Students of at most a tenth of their teacher's parameters.
TENTH = {"Walker": (9,), "Hardcore": (9,), "HalfCheetah": (70, 70), "Walker2d": (16, 12), "Ant": (10,)}
CONTROL = ("Walker", "Hardcore", "HalfCheetah", "Hopper", "Walker2d", "Ant")
TREE10 = {"type": "tree", "max_depth": 10, "min_samples": 5}
WAVES = {"type": "ridge", "l2": 1e-5, "features": {"type": "fourier", "num_features": 1024}}
CNN62 = {"type": "cnn", "channels": [16, 32, 32], "kernels": [8, 4, 3], "strides": [4, 2, 1], "hidden": [24]}
# Small kernels and strides: where the ball is, to a pixel, is what few parameters have to tell.
CNN10 = {"type": "cnn", "channels": [8, 12, 16, 4], "kernels": [4, 4, 4, 3], "strides": [2, 2, 2, 1], "hidden": [24]}


def features(kind: str, student: str = "linear", **settings: Any) -> dict[str, Any]:
    """Return a linear student on these features."""
    return {"type": student, "features": {"type": kind, **settings}}


TREE12 = features("objects", "tree", regions=REGIONS) | {"max_depth": 12, "min_samples": 5, "alternating_passes": 3}

# Environment, name of the student, the student, its loss, the recipe; `wide` and `long` are DAgger from more steps,
# `many` in more rounds.
CELLS: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("CartPole", "linear", LINEAR, "forward_kl", "offline"),
    ("CartPole", "linear-dagger", LINEAR, "forward_kl", "dagger"),
    ("CartPole", "ridge", {"type": "ridge"}, "q_mse", "dagger"),
    ("CartPole", "fitted-q", {"type": "ridge"}, "bellman_target", "offline"),
    ("CartPole", "tree", {"type": "tree", "max_depth": 6}, "gap_weighted_nll", "dagger"),
    ("CartPole", "mlp", MLP32, "forward_kl", "offline"),
    ("CartPole", "mlp-margin", MLP32, "large_margin", "dagger"),
    ("LunarLander", "linear", LINEAR, "forward_kl", "dagger"),
    ("LunarLander", "waves", WAVES, "forward_kl", "dagger"),
    ("LunarLander", "tree", {"type": "tree", "max_depth": 12}, "action_nll", "dagger"),
    ("LunarLander", "mlp", MLP32, "forward_kl", "offline"),
    ("LunarLander", "mlp-dagger", MLP32, "forward_kl", "dagger"),
    ("LunarLander", "mlp-reverse", MLP32, "reverse_kl", "dagger"),
    ("LunarLander", "mlp-on-policy", MLP32, "forward_kl", "on_policy"),
    ("LunarLander", "gru", {"type": "gru", "size": 32, "hidden": [32]}, "forward_kl", "dagger"),
    ("Acrobot", "linear", LINEAR, "forward_kl", "dagger"),
    ("Acrobot", "waves", WAVES, "forward_kl", "offline"),
    ("Acrobot", "tree", {"type": "tree", "max_depth": 6}, "action_nll", "dagger"),
    ("Acrobot", "mlp", MLP32, "jeffreys", "offline"),
    ("BipedalWalker", "linear", LINEAR, "action_nll", "dagger"),
    ("BipedalWalker", "tree", {"type": "tree", "max_depth": 14, "min_samples": 4}, "action_nll", "dagger"),
    ("BipedalWalker", "mlp", TANH64, "forward_kl", "offline"),
    ("BipedalWalker", "mlp-dagger", TANH256, "forward_kl", "wide"),
    ("BipedalWalker", "mlp-ppd", TANH128, "wasserstein", "ppd"),
    ("HalfCheetah", "waves", WAVES, "forward_kl", "dagger"),
    ("HalfCheetah", "mlp", MLP128, "forward_kl", "dagger"),
    ("HalfCheetah", "mlp-wasserstein", MLP64, "wasserstein", "dagger"),
    ("HalfCheetah", "mlp-silu", {"type": "mlp", "hidden": [70, 70], "activation": "silu"}, "wasserstein", "dagger"),
    ("Hopper", "mlp", MLP64, "forward_kl", "dagger"),
    ("Hopper", "mlp-action", MLP64, "action_nll", "dagger"),
    *((env, "linear", LINEAR, "action_nll", "dagger") for env in CONTROL),
    *((env, "tree", TREE10, "action_nll", "dagger") for env in CONTROL),
    *((env, f"mlp-{'x'.join(map(str, sizes))}", tanh(*sizes), "action_nll",
       "many" if "many" in ENVIRONMENTS[env] else "dagger") for env, sizes in TENTH.items()),
    ("WalkerNoLidar", "mlp-10x8", tanh(10, 8), "action_nll", "many"),
    ("AntNoContacts", "mlp-32", tanh(32), "action_nll", "many"),
    ("Hardcore", "mlp-32x32", tanh(32, 32), "action_nll", "long"),
    ("Hardcore", "mlp-relu", MLP32, "action_nll", "long"),  # without tanh, the slowest part of its C source
    *((f"MT10-{task}", "mlp", tanh(32, 32), "action_nll", "dagger") for task in MT10),
    ("Pong", "cnn-62k", CNN62, "forward_kl", "dagger"),
    ("Pong", "cnn-10k", CNN10, "forward_kl", "dagger"),
    ("Pong", "tree-objects", TREE12, "advantage_mse", "many"),
    ("Pong", "linear-objects", features("objects", regions=REGIONS), "forward_kl", "dagger"),
    ("Pong", "linear-raw", LINEAR, "forward_kl", "dagger"),
    ("Pong", "linear-standardized", features("standardized"), "forward_kl", "dagger"),
    ("Pong", "linear-conv", features("random_conv", channels=[16, 32]), "forward_kl", "dagger"),
    ("Pong", "linear-teacher", features("teacher", policy="zoo:pong-dqn"), "forward_kl", "offline"),
    ("Pong", "linear-basic", features("screen_bits:Basic"), "forward_kl", "dagger"),
    ("Pong", "linear-bprost", features("screen_bits:Bprost", cell=4), "forward_kl", "dagger"),
    ("Pong", "ridge-bprost", features("screen_bits:Bprost", "ridge", cell=4) | {"l2": 1e-3}, "q_mse", "dagger"),
]  # fmt: skip


# Of students that want other settings than their environment's.
# Networks of a few hundred weights learn more from many large steps: the held-out loss of 16x12 fell from 0.104 to
# 0.048 at five times the learning rate, and to 0.037 with smaller batches and more epochs, too.
FITS: dict[str, dict[str, Any]] = {
    "cnn-10k": {"epochs": 24},
    "mlp-16x12": {"epochs": 60, "batch_size": 64, "learning_rate": 1e-2},
    "mlp-9": {"batch_size": 64, "learning_rate": 1e-2},
    "mlp-10": {"batch_size": 64, "learning_rate": 1e-2},
    "mlp-32x32": {"batch_size": 64, "learning_rate": 5e-3},
    "mlp-relu": {"batch_size": 64, "learning_rate": 5e-3},
    "mlp-silu": {"epochs": 20, "batch_size": 64, "learning_rate": 5e-3},
}

LONG = ("wide", "long", "ppd")
"""Cells that take minutes per training seed."""
Cell = tuple[str, str, dict[str, Any], str, str]


def teacher_of(env: str, out: Path, agents: Path) -> str:
    """Return the teacher's path: shipped, from the zoo's agents, or trained now."""
    about = ENVIRONMENTS[env]
    if "zoo" in about:
        return str(about["zoo"])
    if "module" in about:
        module, file, path = about["module"].partition("@")
        return f"{module}@{agents.parent / path}" if file else module
    if "agent" in about and (agents / f"{about['agent']}_1").is_dir():
        return str(agents / f"{about['agent']}_1")
    with track(f"train the teacher of {env}", "steps") as report:
        train_teacher(
            EnvConfig(about["id"]), TrainConfig(**about["train"]), out / env / "teacher", mode="resume", progress=report
        )
    return str(out / env / "teacher")


def planned(cell: Cell, teacher: str, out: Path, seeds: list[int]) -> Run:
    """Return the run of a cell."""
    env, name, student, loss, recipe = cell
    about = ENVIRONMENTS[env]
    first, rounds, more, *chosen_by = about.get(recipe, about["rounds"])
    asked: dict[str, Any] = {"name": "dagger" if recipe in about else recipe}
    if recipe == "ppd":
        asked["weight"] = about["weight"]
    elif recipe != "offline":
        asked |= {"rounds": rounds, "steps_per_round": more} | ({"eval_episodes": chosen_by[0]} if chosen_by else {})
    document = {
        "name": name,
        "env": {key: about[key] for key in ("id", "kwargs", "views") if key in about},
        "teacher": teacher,
        "out": str(out / env / recipe / ("explored" if loss == "bellman_target" else "greedy")),
        "collect": {
            "steps": about["steps"] if recipe == "offline" else first,
            "epsilon": 0.2 if loss == "bellman_target" else 0.0,
            "gamma": about.get("gamma", 0.99),
        },
        "recipe": asked,
        "distill": {**about["fit"], **FITS.get(name, {}), "losses": [loss]},
        "ppo": about.get("ppo", {}),
        "students": {name: student},
        "seeds": seeds,
    }
    return read_run(document)


def fill(run: Run) -> PolicyRuns:
    """Collect and distill missing students, and store the seconds beside them."""
    started = time.monotonic()
    (name,) = run.students
    place = run.out / "students" / name
    dataset = run_collect(run, mode="resume", quiet=True) if run.recipe.needs_dataset else None
    teacher = load_teacher(run)
    students: dict[int | None, Policy | None] = {}
    for seed in run.seeds:
        with track(f"{run.env.id}, {name}, seed {seed}", "epochs" if run.recipe.learner is None else "steps") as report:
            students[seed] = run.recipe.distill(StudentJob(run, teacher, dataset, name, seed), "resume", report)
    if not (place / "seconds.json").exists():
        write_json(place / "seconds.json", {"seconds": round(time.monotonic() - started, 1)})
    own = [place / f"seed-{seed}" / "dataset" for seed in run.seeds]
    steps = max((Manifest.read(folder).num_steps for folder in own if folder.exists()), default=0)
    return PolicyRuns("student", students, run.ppo.total_steps if dataset is None else dataset.num_steps + steps)


def rows_of(
    env: str, cells: list[Cell], out: Path, agents: Path, seeds: list[int], episodes: int
) -> list[dict[str, Any]]:
    """Fill the cells of one environment and evaluate all their students together."""
    teacher = teacher_of(env, out, agents)
    entrants: dict[str, PolicyRuns] = {}
    failed: dict[str, str] = {}
    runs = {cell[1]: planned(cell, teacher, out, seeds) for cell in cells}
    for name, run in runs.items():
        try:
            entrants[name] = fill(run)
        except RLDistillError as error:
            failed[name] = str(error)
    some = next(iter(runs.values()))
    players = {"teacher": PolicyRuns("teacher", {None: load_teacher(some)}, 0), **entrants}
    with track(f"evaluate {env}", "episodes") as report:
        config = EvaluateConfig(episodes, videos=False)
        found = evaluate(some.env, players, config, out / env, progress=report).to_dict()
    rows = []
    for _, name, _, loss, recipe in cells:
        row: dict[str, Any] = {"env": env, "student": name, "loss": loss, "recipe": recipe}
        said = found["policies"].get(name, {})
        row |= {"normalized": said.get("normalized"), "keeps": (said.get("non_inferiority") or {}).get("decision")}
        row |= {"env_steps": said.get("env_steps"), "parameters": said.get("parameters"), "seconds": None}
        timed = runs[name].out / "students" / name / "seconds.json"
        if timed.exists():
            row["seconds"] = read_json(timed)["seconds"]
        rows.append(row | ({"failed": failed[name]} if name in failed else {}))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one training seed, no Pong, nothing long")
    parser.add_argument("--only", metavar="ENV/STUDENT/RECIPE", default="", help="those that begin so, as Pong/tree")
    parser.add_argument("--seeds", type=int, help="number of training seeds, by default 5, and 3 where they are slow")
    parser.add_argument("--episodes", type=int, help="test episodes of each policy, in place of those of the table")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/matrix"))
    parser.add_argument("--agents", type=Path, default=Path("../shared/teachers/sb3"), help="rl-baselines3-zoo agents")
    asked = parser.parse_args()
    cells = [cell for cell in CELLS if "/".join((cell[0], cell[1], cell[4])).startswith(asked.only)]
    if asked.quick:
        cells = [cell for cell in cells if cell[0] != "Pong" and cell[4] not in LONG]
    if not cells:
        parser.error(f"--only: no cell begins with {asked.only!r}: {', '.join('/'.join(c[:2]) for c in CELLS)}")
    rows: list[dict[str, Any]] = []
    for env in dict.fromkeys(cell[0] for cell in cells):
        about = ENVIRONMENTS[env]
        seeds = [*range(1 if asked.quick else asked.seeds or about.get("seeds", 5))]
        of_env = [cell for cell in cells if cell[0] == env]
        out = asked.out / ("quick" if asked.quick else "full")
        rows += rows_of(env, of_env, out, asked.agents, seeds, asked.episodes or about.get("episodes", 100))
        if asked.json is not None:
            write_json(asked.json, {"rows": rows})
    table = Table(
        "env", "student", "loss", "recipe", "normalized", "95%", "keeps 95%", "steps", "parameters", "seconds"
    )
    for row in rows:
        if row["normalized"] is None:
            table.add_row(*(row[key] for key in ("env", "student", "loss", "recipe")), row.get("failed", "not defined"))
            continue
        low, high = row["normalized"]["ci95"]
        table.add_row(
            *(row[key] for key in ("env", "student", "loss", "recipe")), f"{row['normalized']['value']:.3f}",
            f"{low:.2f} to {high:.2f}", row["keeps"], f"{row['env_steps']:,}", f"{row['parameters']:,}",
            f"{row['seconds']:,.0f}",
        )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
