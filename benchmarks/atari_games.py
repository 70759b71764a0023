"""Distill Atari games by their run files in `examples/atari/`, and print the scores of teachers and students.

Every run goes on after an interruption. Games whose agent is not in `--agents` are left out; docs/atari.md names the
sources. `--steps` divides the environment steps among the rounds as the run files do, and further arguments replace
keys of all run files, as in `rldistill run`. `--teachers` plays the teachers and distills nothing.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rldistill import NothingLearnedError, RLDistillError, load_run
from rldistill.evaluation.evaluate import evaluate
from rldistill.io.atomic import read_json, write_json
from rldistill.recipes import Dagger
from rldistill.recipes.job import Run
from rldistill.run.jobs import load_teacher
from rldistill.run.stages import run_all

ROOT = Path(__file__).parents[1]
GAMES = {file.stem: file for file in sorted((ROOT / "examples" / "atari").glob("*.yaml"))}
STUDENTS = {"cnn": "cnn, <= 7%", "tiny": "cnn, <= 1%", "linear": "linear, pixels", "features": "linear, features"}
FLOOR = 0.01
"""Normalized score that counts in a geometric mean in place of a lower one."""


def agent_path(file: str, folder: Path) -> Path | None:
    """Return the path of an agent's file in the folder of the agents, or None."""
    return next((path for path in (folder / file, folder / "more" / file) if path.exists()), None)


def planned(game: str, overrides: Sequence[str], steps: int | None, agents: Path) -> Run | None:
    """Return the run of a game, or None if its agent is not there."""
    run = load_run(GAMES[game], overrides)
    module, at, file = str(run.document["teacher"]).partition("@")
    if at and (path := agent_path(file, agents)) is None:
        return None
    changes = [f"teacher={module}@{path}"] if at else []
    if steps is not None:
        assert isinstance(run.recipe, Dagger)
        share = steps / (run.collect.steps + run.recipe.rounds * run.recipe.steps_per_round)
        changes += [f"collect.steps={round(share * run.collect.steps)}"]
        changes += [f"recipe.steps_per_round={round(share * run.recipe.steps_per_round)}"]
    return load_run(GAMES[game], [*changes, *overrides])


def teacher_row(run: Run) -> dict[str, Any]:
    """Play the teacher of a run, and at random."""
    settings = replace(run.evaluate, videos=False)
    evaluate(run.env, {"teacher": load_teacher(run)}, settings, run.out / "teacher-alone")
    return read_json(run.out / "teacher-alone" / "evaluation.json")


def game_row(run: Run) -> dict[str, Any]:
    """Run the stages of a run that are missing, and return its results."""
    try:
        run_all(run, "resume", quiet=True)
    except NothingLearnedError as error:
        print(error, file=sys.stderr)
        if not (run.out / "evaluation.json").exists():
            raise
    return read_json(run.out / "evaluation.json")


def summary(game: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a game from its `evaluation.json`."""
    policies = found["policies"]
    students = {
        name: {key: policies[name][key] for key in ("mean", "normalized", "parameters", "env_steps")}
        for name in STUDENTS
        if name in policies
    }
    scores = {name: policies[name]["mean"] for name in ("teacher", "random")}
    parameters = policies["teacher"]["parameters"]
    row = {"game": game, "episodes": found["episodes"], "seeds": found["seeds"], "teacher_parameters": parameters}
    return row | scores | {"students": students}


def geometric_means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the geometric mean of each student's normalized scores over the games that have one."""
    means = {}
    for name in STUDENTS:
        found = [row["students"][name]["normalized"] for row in rows if name in row["students"]]
        scores = [max(score["value"], FLOOR) for score in found if score is not None]
        if scores:
            means[name] = math.prod(scores) ** (1 / len(scores))
    return means


def table_of(rows: Sequence[dict[str, Any]], means: dict[str, float]) -> Table:
    """Return the table of all games."""
    names = [name for name in STUDENTS if any(name in row["students"] for row in rows)]
    table = Table("game", "teacher", "random", *(STUDENTS[name] for name in names), "steps")
    for row in rows:
        cells = []
        for name in names:
            score = row["students"].get(name, {}).get("normalized")
            cells.append("-")
            if score is not None:
                low, high = score["ci95"] or (math.nan, math.nan)
                cells[-1] = f"{score['value']:.3f} ({low:.2f} to {high:.2f})"
        steps = max((student["env_steps"] for student in row["students"].values()), default=0)
        played = [f"{row[name]['value']:,.1f}" for name in ("teacher", "random")]
        table.add_row(row["game"], *played, *cells, f"{steps:,}")
    table.add_row("geometric mean", "", "", *(f"{means[name]:.3f}" if name in means else "-" for name in names), "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="GAME,GAME", default=",".join(GAMES), help=f"some of {', '.join(GAMES)}")
    parser.add_argument("--seeds", type=int, default=3, help="number of training seeds")
    parser.add_argument("--episodes", type=int, default=30, help="test episodes of each policy")
    parser.add_argument("--steps", type=int, help="environment steps of each game, by default those of the run files")
    parser.add_argument("--teachers", action="store_true", help="play the teachers, and distill nothing")
    parser.add_argument("--agents", type=Path, default=Path("../shared/teachers"), help="folder of the agents")
    parser.add_argument("--out", type=Path, default=Path("runs/atari"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a key of the run files")
    asked = parser.parse_args()
    games = asked.only.split(",")
    if unknown := {*games} - {*GAMES}:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; expected some of {', '.join(GAMES)}")
    out, agents = asked.out.resolve(), asked.agents.resolve()
    os.chdir(ROOT)  # the run files name modules from here
    sys.path.insert(0, str(ROOT))
    common = [f"seeds={[*range(asked.seeds)]}", f"evaluate.episodes={asked.episodes}", "evaluate.videos=false"]
    rows: list[dict[str, Any]] = []
    for game in games:
        settings = [f"out={out / game}", *common, "verify=false", *asked.overrides]
        try:
            run = planned(game, settings, asked.steps, agents)
            if run is None:
                print(f"{game}: its agent is not in {agents}. Pass its folder as --agents.", file=sys.stderr)
                continue
            rows.append(summary(game, teacher_row(run) if asked.teachers else game_row(run)))
        except RLDistillError as error:
            print(f"{game}: {error}", file=sys.stderr)
            continue
        if asked.json is not None:
            write_json(asked.json, {"games": rows, "geometric_mean": geometric_means(rows)})
    if not rows:
        sys.exit(1)
    Console(width=170).print(table_of(rows, geometric_means(rows)))


if __name__ == "__main__":
    main()
