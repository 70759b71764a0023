"""Recipes that learn from the teacher's dataset alone, without further environment steps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rldistill.collection.collect import collected_spec
from rldistill.collection.relabel import relabel
from rldistill.core.errors import ConfigError
from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.policy import Policy
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import EVERY_LABEL, Dataset
from rldistill.data.manifest import Manifest
from rldistill.distillation.config import SEED_STRIDE
from rldistill.distillation.distill import distill, require_fit
from rldistill.distillation.prepare import reader_of_every_label
from rldistill.distillation.weighting import label_spec, require_weighting
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress, Round
from rldistill.io.stage_inputs import canonical, format_json
from rldistill.losses.objective import policy_terms, require_comparable, student_spec
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Recipe, Run, StudentJob
from rldistill.students import AnyStudent, Team
from rldistill.students.storage import load_native, trust_student
from rldistill.teachers.fingerprint import fingerprint


def load_initial(folder: str, student: AnyStudent) -> NetworkPolicy:
    """Load a student to learn on from; raise ConfigError unless it has the settings of `student`."""
    if not (Path(folder) / "policy.json").exists():
        raise ConfigError(f"recipe.initial: {folder}: there is no student. Name a folder such as students/mlp/seed-0.")
    trust_student(student)
    initial = load_native(Path(folder))
    config = initial.config
    if isinstance(config, Team):
        config = replace(config, members=())  # which repeat the settings of its students
    if config != student:
        own, given = (format_json(canonical(settings)) for settings in (config, student))
        raise ConfigError(
            f"recipe.initial: {folder} is {own}, but the run has {given}. Use one student with its settings."
        )
    return initial


def require_initial(folder: str, student: AnyStudent, spec: PolicySpec, env_id: str) -> None:
    """Raise an error unless the student in `folder` can learn on with this `spec`."""
    initial, where = load_initial(folder, student), f"recipe.initial: {folder}"
    initial.spec.require_same_input(spec, where, env_id)
    if initial.spec.head != spec.head:
        raise ConfigError(
            f"{where} has a {initial.spec.head.kind} head, expected the {spec.head.kind} head of these actions and "
            "losses. Use a student of the same teacher."
        )


def require_other_folder(initial: str, run: Run, name: str) -> None:
    """Raise ConfigError if `initial` is a student of the run, which would replace it."""
    if Path(initial).resolve() in (folder.resolve() for folder in run.policy_folders(name).values()):
        raise ConfigError(
            f"recipe.initial: {initial} is a student of this run, which would replace it. Use another folder for the "
            "run (out=...)."
        )


class FromDataset(Recipe):
    """Base class of recipes that distill datasets.

    Attributes:
        initial: folder of a student to begin with, in place of new weights.
        rounds: number of further fits of each student, after the first.
    """

    initial: str | None = None
    rounds: int = 0

    def units(self, run: Run) -> int:
        return run.distill.epochs * (self.rounds + 1)

    def inputs(self, student: AnyStudent) -> dict[str, Any]:
        return {} if self.initial is None else {"recipe.initial": fingerprint(load_initial(self.initial, student))}

    def first(self, job: StudentJob) -> AnyStudent | NetworkPolicy:
        """Return the student of a job with the weights to begin with, or its configuration for new ones."""
        return job.student if self.initial is None else load_initial(self.initial, job.student)

    def check(self, run: Run, teacher: Policy) -> None:
        spec = collected_spec(run.env, teacher)
        require_weighting(run.distill.weighting, spec)
        for name, student in run.students.items():
            require_fit(student, run.distill, spec)
            if self.initial is not None:
                require_other_folder(self.initial, run, name)
                head = student_spec(label_spec(spec), policy_terms(run.distill.losses)).head
                require_initial(self.initial, student, replace(spec, head=head), run.env.id)
            if run.collect.label_every > 1 and (reader := reader_of_every_label(student, run.distill)) is not None:
                raise ConfigError(EVERY_LABEL.format(reader))


@validated_dataclass
class Offline(FromDataset):
    """Collect once, distill once.

    Attributes:
        initial: folder of a student to begin with, such as one of `reptile`, in place of new weights.
    """

    initial: str | None = None

    several_tasks = True

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        job.open(mode)
        config = job.run.distill
        return distill(job.data, self.first(job), config, job.folder, seed=job.seed, mode="resume", progress=progress)


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
        if job.open(mode):
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
