"""Born-again networks: each student teaches the next of its kind (Furlanello 2018, arXiv 1805.04770).

The states stay those that the first teacher's collection recorded; no step of an environment is taken.
"""

from __future__ import annotations

from pathlib import Path

from rldistill.collection.relabel import relabel
from rldistill.core.policy import Policy
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.distillation.distill import distill
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress, Round
from rldistill.losses.objective import of_the_policy, require_comparable, student_spec
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.config import BornAgain
from rldistill.recipes.job import Run
from rldistill.recipes.student_folder import student_inputs
from rldistill.students.storage import load_native
from rldistill.teachers.fingerprint import fingerprint

NEXT_SEED = 1_000_003
"""Between the training seeds of two generations, so that each begins with weights of its own."""


def distill_student(
    run: Run, teacher: Policy, dataset: Dataset, name: str, seed: int, mode: Mode, progress: Progress
) -> NetworkPolicy:
    """Distil one student with one training seed, in `recipe.rounds` generations after the first."""
    folder = run.folder / "students" / name / f"seed-{seed}"
    if student_inputs(run, name, teacher).open_folder(folder, "policy.json", mode):
        return load_native(folder)
    assert isinstance(run.recipe, BornAgain)
    rounds, data, student = run.recipe.rounds, dataset, None
    for number in range(rounds + 1):
        if student is not None:
            data = _relabelled(run, student, folder / f"labels-{number}")
        student = distill(
            data,
            run.students[name],
            run.distill,
            folder / f"round-{number}" if number < rounds else folder,
            seed=seed + number * NEXT_SEED,
            mode="resume",
            progress=Round(progress, number, rounds + 1),
        )
    assert student is not None
    return student


def require_next(run: Run, first: PolicySpec) -> None:
    """Raise SpecMismatchError if what students of data like `first` say cannot teach the next."""
    terms = of_the_policy(run.distill.losses)
    second = student_spec(first, terms)
    require_comparable(terms, second.head, student_spec(second, terms).head)


def _relabelled(run: Run, student: NetworkPolicy, folder: Path) -> Dataset:
    if (folder / "manifest.json").exists():
        Manifest.read(folder).require_teacher(fingerprint(student))
        return Dataset.read([folder], run.collect.gamma, memory_gb=run.collect.memory_gb)
    collected = run.collect
    return relabel(
        run.folder / "dataset",
        student,
        folder,
        features=any(term.loss.student_head == "features" for term in run.distill.losses),
        gamma=collected.gamma,
        memory_gb=collected.memory_gb,
        mode="overwrite",
        progress=False,
    )
