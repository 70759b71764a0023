"""Recipes that learn from the teacher's dataset alone, without further environment steps."""

from rldistill.collection.collect import collected_spec
from rldistill.collection.relabel import relabel
from rldistill.core.errors import ConfigError
from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.policy import Policy
from rldistill.data.dataset import EVERY_LABEL, Dataset
from rldistill.data.manifest import Manifest
from rldistill.distillation.distill import distill, require_fit
from rldistill.distillation.mixture import label_spec
from rldistill.distillation.prepare import reader_of_every_label
from rldistill.distillation.weighting import require_weighting
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress, Round
from rldistill.losses.objective import policy_terms, require_comparable, student_spec
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Recipe, Run, StudentJob
from rldistill.students.storage import load_native
from rldistill.teachers.fingerprint import fingerprint

SEED_STRIDE = 1_000_003
"""Distance between the training seeds of two generations, so that each generation has its own initial weights."""


class FromDataset(Recipe):
    """Base class of recipes that distill datasets."""

    def check(self, run: Run, teacher: Policy) -> None:
        spec = collected_spec(run.env, teacher)
        require_weighting(run.distill.weighting, spec)
        for student in run.students.values():
            require_fit(student, run.distill, spec)
            if run.collect.label_every > 1 and (reader := reader_of_every_label(student, run.distill)) is not None:
                raise ConfigError(EVERY_LABEL.format(reader))


@validated_dataclass
class Offline(FromDataset):
    """Collect once, distill once."""

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        job.inputs().open_folder(job.folder, "policy.json", mode)
        config = job.run.distill
        return distill(job.data, job.student, config, job.folder, seed=job.seed, mode="resume", progress=progress)


@validated_dataclass
class BornAgain(FromDataset):
    """Born-again networks: each student labels the data for the next one, which starts from new weights.

    Furlanello 2018, arXiv 1805.04770.

    Attributes:
        rounds: generations after the first.
    """

    rounds: Positive = 1

    def check(self, run: Run, teacher: Policy) -> None:
        super().check(run, teacher)
        # The losses must also fit a student as teacher.
        terms = policy_terms(run.distill.losses)
        second = student_spec(label_spec(collected_spec(run.env, teacher)), terms)
        has_value = any(term.loss.student_head == "value" for term in run.distill.losses)
        require_comparable(terms, second.head, student_spec(second, terms).head, has_value)

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        if job.inputs().open_folder(job.folder, "policy.json", mode):
            return load_native(job.folder)
        data, collected = job.data, job.run.collect
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
            labels = job.folder / f"labels-{number + 1}"
            if number < self.rounds and (labels / "manifest.json").exists():
                Manifest.read(labels).require_teacher(fingerprint(student))
                data = Dataset.read([labels], collected.gamma, memory_gb=collected.memory_gb)
            elif number < self.rounds:
                data = relabel(
                    job.dataset_folder,
                    student,
                    labels,
                    features=any(term.loss.student_head == "features" for term in job.run.distill.losses),
                    gamma=collected.gamma,
                    memory_gb=collected.memory_gb,
                    mode="overwrite",
                    progress=False,
                )
        return student
