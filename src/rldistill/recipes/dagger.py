"""DAgger (Ross 2011, arXiv 1011.0686): the student acts, the teacher labels, the data are aggregated.

Each round goes on from the student of the round before it rather than from new weights. With `eval_episodes`, the one
that plays best is kept, as in VIPER (Bastani 2018, arXiv 1805.08328): trees differ much from round to round.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rldistill.collection.collect import collect
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import adapt_env
from rldistill.evaluation.episodes import VALIDATION, play
from rldistill.io.atomic import Mode, read_json, write_json
from rldistill.io.progress import Progress, Round
from rldistill.io.provenance import provenance
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.config import Dagger
from rldistill.recipes.job import Run
from rldistill.recipes.student_folder import student_inputs
from rldistill.students.storage import load_native, save_policy


def distill_student(
    run: Run, teacher: Policy, dataset: Dataset, name: str, seed: int, mode: Mode, progress: Progress
) -> NetworkPolicy:
    """Distil one student with one training seed, in `recipe.rounds` rounds after the first."""
    assert isinstance(run.recipe, Dagger)
    return in_rounds(run, run.recipe, teacher, dataset, name, seed, mode, progress)


def in_rounds(
    run: Run,
    recipe: Dagger,
    teacher: Policy,
    dataset: Dataset,
    name: str,
    seed: int,
    mode: Mode,
    progress: Progress,
    newest_only: bool = False,
    taught: Path | None = None,
) -> NetworkPolicy:
    """Distil on the run's dataset, then round after round on what the student of the round before collects.

    Args:
        run, teacher, dataset, name, seed, mode, progress: as every recipe has them.
        recipe: how many rounds, and who acts in them.
        newest_only: whether a round learns from its own steps alone, not from all so far.
        taught: where the teacher's dataset is; in the run's folder by default.
    """
    folder = run.folder / "students" / name / f"seed-{seed}"
    inputs = student_inputs(run, name, teacher, taught)
    if inputs.open_folder(folder, "policy.json", mode):
        return load_native(folder)
    student: NetworkPolicy | None = None
    rounds, place, data = recipe.rounds, folder / "dataset", dataset
    tried: list[tuple[float, NetworkPolicy]] = []
    for number in range(rounds + 1):
        if student is not None:
            now = recipe.beta((number - 1) / max(rounds - 1, 1))
            config = dataclasses.replace(run.collect, steps=recipe.steps_per_round, beta=now)
            collect(
                run.env, teacher, config, place, seed=seed, student=student, round=number, mode="resume", progress=False
            )
            both = [place] if newest_only else [taught or run.folder / "dataset", place]
            newest = number if newest_only else None
            data = Dataset.read(both, run.collect.gamma, memory_gb=run.collect.memory_gb, only_round=newest)
        is_last = number == rounds and recipe.eval_episodes is None  # else one of all rounds is kept
        at = folder if is_last else folder / f"round-{number}"
        part = Round(progress, number, rounds + 1)
        student = distill(
            data,
            run.students[name],
            run.distill,
            at,
            seed=seed,
            initial=student,
            mode="resume",
            progress=part,
        )
        if recipe.eval_episodes is not None:
            tried.append((_score(run, teacher, student, recipe.eval_episodes, at), student))
            part.update(run.distill.epochs, run.distill.epochs, tried[-1][0])
    if tried:
        best = max(range(len(tried)), key=lambda number: tried[number][0])
        save_policy(tried[best][1], folder, {**provenance(seed), "round": best})
        student = load_native(folder)
    assert student is not None
    return student


def _score(run: Run, teacher: Policy, student: NetworkPolicy, episodes: int, place: Path) -> float:
    """A student's mean return over episodes that nobody is judged by at the end, played once and kept beside it."""
    file = place / "score.json"
    if not file.exists():
        returns = play(adapt_env(run.env, teacher), student, episodes, seed=run.seed, split=VALIDATION).returns
        write_json(file, {"episodes": episodes, "score": float(returns.mean())})
    return float(read_json(file)["score"])
