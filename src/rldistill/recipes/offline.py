"""Offline: the teacher has acted once, the student learns from that."""

from __future__ import annotations

from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.distillation.distill import distill
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Run
from rldistill.recipes.student_folder import student_inputs


def distill_student(
    run: Run, teacher: Policy, dataset: Dataset, name: str, seed: int, mode: Mode, progress: Progress
) -> NetworkPolicy:
    """Distil one student with one training seed."""
    folder = run.folder / "students" / name / f"seed-{seed}"
    student_inputs(run, name, teacher).open_folder(folder, "policy.json", mode)
    return distill(
        dataset,
        run.students[name],
        run.distill,
        folder,
        seed=seed,
        mode="resume",
        progress=progress,
    )
