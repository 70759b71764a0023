"""DAgger (Ross 2011, arXiv 1011.0686): the student acts, the teacher labels, the data are aggregated.

Each round goes on from the student of the round before it rather than from new weights.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from rldistill.artifacts import open_stage
from rldistill.collect import collect
from rldistill.data.dataset import Dataset
from rldistill.distill import distill
from rldistill.progress import Report
from rldistill.recipes.run import Run, report_round
from rldistill.students.network import NetworkPolicy
from rldistill.students.storage import load_native
from rldistill.types import Policy


def distill_student(
    run: Run, teacher: Policy, dataset: Dataset, name: str, seed: int, resume: bool, overwrite: bool, report: Report
) -> NetworkPolicy:
    """Distil one student with one training seed, in `recipe.rounds` rounds after the first."""
    rounds = run.recipe.rounds
    folder = run.folder / "students" / name / f"seed-{seed}"
    if open_stage(folder, folder / "policy.json", resume, overwrite):
        return load_native(folder)
    student: NetworkPolicy | None = None
    data = dataset
    for number in range(rounds + 1):
        if student is not None:
            _collect_round(run, teacher, student, folder, seed, number)
            both = [run.folder / "dataset", folder / "dataset"]
            data = Dataset.read(both, run.collect.gamma, memory_gb=run.collect.memory_gb)
        student = distill(
            data,
            run.students[name],
            run.distill,
            folder / f"round-{number}" if number < rounds else folder,
            seed=seed,
            initial=student,
            resume=True,
            progress=partial(report_round, report, number, rounds + 1),
        )
    assert student is not None
    return student


def _collect_round(run: Run, teacher: Policy, student: NetworkPolicy, folder: Path, seed: int, number: int) -> None:
    beta = run.recipe.beta((number - 1) / max(run.recipe.rounds - 1, 1))
    asked = dataclasses.replace(run.collect, steps=run.recipe.steps_per_round, beta=beta)
    collect(run.env, teacher, asked, folder / "dataset", seed=seed, student=student, round=number, resume=True)
