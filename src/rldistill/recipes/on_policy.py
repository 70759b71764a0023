"""On-policy distillation: the student acts, and learns from what the teacher says of its newest steps.

Czarnecki 2019, arXiv 1902.02186. With the losses `reverse_kl` and `entropy` this is their expected entropy
regularised form. The first round is the run's own collection, in which the teacher acts.
"""

from __future__ import annotations

import dataclasses
from functools import partial

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
    folder = run.folder / "students" / name / f"seed-{seed}"
    if open_stage(folder, folder / "policy.json", resume, overwrite):
        return load_native(folder)
    rounds, data, student = run.recipe.rounds, dataset, None
    asked = dataclasses.replace(run.collect, steps=run.recipe.steps_per_round, beta=0.0)
    for number in range(rounds + 1):
        if student is not None:
            place = folder / "dataset"
            collect(run.env, teacher, asked, place, seed=seed, student=student, round=number, resume=True)
            data = Dataset.read([place], run.collect.gamma, memory_gb=run.collect.memory_gb, only_round=number)
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
