"""Offline distillation: one collection, one distillation."""

from __future__ import annotations

from rldistill.collection.collect import collected_spec
from rldistill.core.fields import validated_dataclass
from rldistill.core.policy import Policy
from rldistill.distillation.distill import distill, require_fit
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Recipe, Run, StudentJob


class FromDataset(Recipe):
    """Base class of recipes that distill datasets."""

    def check(self, run: Run, teacher: Policy) -> None:
        """Raise for a student or a loss that does not fit the labels of the teacher."""
        spec = collected_spec(run.env, teacher)
        for student in run.students.values():
            require_fit(student, run.distill, spec)


@validated_dataclass
class Offline(FromDataset):
    """Collect once, distill once."""

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        """Distill one student with one training seed."""
        job.inputs().open_folder(job.folder, "policy.json", mode)
        config = job.run.distill
        return distill(job.data, job.student, config, job.folder, seed=job.seed, mode="resume", progress=progress)
