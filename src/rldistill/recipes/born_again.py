"""Born-again networks (Furlanello 2018, arXiv 1805.04770): each student teaches the next one of its kind.

All generations learn from the states of the teacher's dataset; no further environment step is taken.
"""

from __future__ import annotations

from pathlib import Path

from rldistill.collection.collect import collected_spec
from rldistill.collection.relabel import relabel
from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.distillation.distill import distill
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress, Round
from rldistill.losses.objective import policy_terms, require_comparable, student_spec
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Run, StudentJob
from rldistill.recipes.offline import FromDataset
from rldistill.students.storage import load_native
from rldistill.teachers.fingerprint import fingerprint

SEED_STRIDE = 1_000_003
"""Distance between the training seeds of two generations, so that each generation has its own initial weights."""


@validated_dataclass
class BornAgain(FromDataset):
    """Born-again networks: each student labels the data for the next one, which starts from new weights.

    Attributes:
        rounds: generations after the first.
    """

    rounds: Positive = 1

    def check(self, run: Run, teacher: Policy) -> None:
        """Raise for students that do not fit the teacher, and for losses that do not fit a student as teacher."""
        super().check(run, teacher)
        terms = policy_terms(run.distill.losses)
        second = student_spec(collected_spec(run.env, teacher), terms)
        has_value = any(term.loss.student_head == "value" for term in run.distill.losses)
        require_comparable(terms, second.head, student_spec(second, terms).head, has_value)

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        """Distill one student with one training seed."""
        if job.inputs().open_folder(job.folder, "policy.json", mode):
            return load_native(job.folder)
        data = job.data
        for number in range(self.rounds + 1):
            student = distill(
                data,
                job.student,
                job.run.distill,
                job.folder / f"round-{number}" if number < self.rounds else job.folder,
                seed=job.seed + number * SEED_STRIDE,
                mode="resume",
                progress=Round(progress, number, self.rounds + 1),
            )
            if number < self.rounds:
                data = _relabel(job, student, job.folder / f"labels-{number + 1}")
        return student


def _relabel(job: StudentJob, student: NetworkPolicy, folder: Path) -> Dataset:
    collected, losses = job.run.collect, job.run.distill.losses
    if (folder / "manifest.json").exists():
        Manifest.read(folder).require_teacher(fingerprint(student))
        return Dataset.read([folder], collected.gamma, memory_gb=collected.memory_gb)
    return relabel(
        job.dataset_folder,
        student,
        folder,
        features=any(term.loss.student_head == "features" for term in losses),
        gamma=collected.gamma,
        memory_gb=collected.memory_gb,
        mode="overwrite",
        progress=False,
    )
