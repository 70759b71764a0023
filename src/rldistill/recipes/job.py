"""Run, job of one student, and base class of recipes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from annotated_types import MinLen
from pydantic import AfterValidator, BeforeValidator, Field

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError
from rldistill.core.fields import PYTHON_ONLY, OneOf, Seed, validated_dataclass
from rldistill.core.policy import Policy
from rldistill.core.spec import Side
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import FILE, Manifest
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.values import own_episodes
from rldistill.envs.spaces import adapt_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import VALIDATION, PlayConfig, play
from rldistill.exporters.config import ExportConfig
from rldistill.io.atomic import Mode
from rldistill.io.execution import SERIAL, Execution
from rldistill.io.progress import Progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.io.trackers import AnyTracker, TensorBoard, require_different
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.fields import (
    UNLESS_TASKS,
    EnvField,
    MemberField,
    TeacherField,
    from_url,
    require_distinct,
    require_folder,
    require_member_names,
    require_usable_names,
)
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.students import AnyStudent
from rldistill.students.storage import trust_student
from rldistill.teachers.fingerprint import fingerprint

Data = Dataset | Mapping[str, Dataset]
"""Data of a student: a dataset, or one for each task."""
RECIPES: dict[str, type[Recipe]] = {}
"""Recipes by their name in run files, listed in `rldistill.recipes`."""


class Recipe(ABC):
    """Base class of recipes, which are frozen dataclasses of their settings.

    A run file names a recipe of your own as `module:Class`.

    Attributes:
        needs_teacher: False if any teacher would lead to the same student.
        several_tasks: True if the recipe takes data and scores from its job alone, which may have several tasks.
        learner: section of the run with the settings of learning from reward; None if the recipe has no such part.
    """

    needs_teacher: ClassVar[bool] = True
    several_tasks: ClassVar[bool] = False
    learner: ClassVar[Literal["ppo", "dqn"] | None] = None

    @property
    def needs_dataset(self) -> bool:
        """True if the recipe learns from a dataset of the teacher."""
        return True

    def units(self, run: Run) -> int:
        """Return the epochs of a student, or the steps of one that learns from reward, for the progress of many."""
        return run.distill.epochs if self.learner is None else int(getattr(run, self.learner).total_steps)

    def inputs(self, student: AnyStudent) -> dict[str, Any]:
        """Return hashes of the files that the recipe reads for a student, by the key that names them."""
        return {}

    def check(self, run: Run, teacher: Policy) -> None:  # noqa: B027 - most recipes of users have nothing to refuse
        """Raise, before data are collected or discarded, if the students of a run cannot be distilled."""

    @abstractmethod
    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        """Distill one student with one training seed into `job.folder`."""


@validated_dataclass
class Task:
    """Task of a student of several tasks.

    Attributes:
        env: Environment.
        teacher: Its teacher, as in a run of one task.
        sample: Value of `collect.sample` and `evaluate.sample` in this task, such as false for a teacher with Q values
            beside teachers with probabilities; by default that of the run.
    """

    env: EnvField
    teacher: TeacherField
    sample: bool | None = None


@validated_dataclass
class Run:
    """A run: from a teacher to evaluated students. It is the content of a run file.

    Attributes:
        env: Environment; required without `tasks`.
        teacher: Path of a saved teacher, or `path` with options; `ensemble` of several; or teacher to `train`. In
            Python, also any policy. Required without `tasks` and `teachers`.
        teachers: Several teachers by name, in place of `teacher`, each with its own options. All label all steps, they
            take turns as the acting one from episode to episode, and `distill.weighting` makes one label of theirs.
        tasks: Several tasks by name, in place of `env` and `teacher`, for `multi_task` students.
        name: Name of the run; by default that of its file.
        out: Folder of all results; by default `runs/NAME` for a run file. A URL such as `s3://bucket/run` has a copy on
            this machine (docs/cluster.md).
        seed: Seed of collection and evaluation, and of a teacher to train.
        collect: Settings of the collection.
        recipe: Way from the teacher to a student.
        distill: Settings of distillation.
        ppo: Settings of recipes that learn by PPO.
        dqn: Settings of recipes that learn by DQN.
        control: `from_scratch` also trains each student from reward alone.
        students: Students by name.
        seeds: Training seeds of each student.
        evaluate: Settings of the evaluation.
        export: Formats of the students outside of this package; none by default.
        execution: Processes or tasks of Ray in which the stages run their jobs.
        track: Trackers of the learning curves and results (docs/trackers.md).
        verify: True if a teacher that was trained elsewhere is checked before the collection.
        document: Content of the run file with its overrides; empty for a run that was made in Python.
    """

    env: Annotated[EnvField, UNLESS_TASKS] = cast(Any, None)
    teacher: TeacherField | None = None
    teachers: Annotated[dict[str, MemberField], AfterValidator(require_member_names)] = field(default_factory=dict)
    tasks: Annotated[dict[str, Task], AfterValidator(require_usable_names)] = field(default_factory=dict)
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = "run"
    out: Annotated[Path, BeforeValidator(from_url), AfterValidator(require_folder)] = Path("runs/run")
    seed: Seed = 0
    collect: CollectConfig = CollectConfig()
    recipe: Annotated[Recipe, OneOf("name", RECIPES, methods=("distill",))] = field(
        default_factory=lambda: RECIPES["offline"]()
    )
    distill: DistillConfig = DistillConfig()
    ppo: PPOConfig = PPOConfig()
    dqn: DQNConfig = DQNConfig()
    control: Literal["none", "from_scratch"] = "none"
    students: Annotated[dict[str, AnyStudent], AfterValidator(require_usable_names)] = field(default_factory=dict)
    seeds: Annotated[tuple[Seed, ...], MinLen(1), AfterValidator(require_distinct)] = (0,)
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig | None = None
    execution: Execution = SERIAL
    track: Annotated[tuple[AnyTracker, ...], AfterValidator(require_different)] = (TensorBoard(),)
    verify: bool = True
    document: Annotated[dict[str, Any], PYTHON_ONLY] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.tasks:
            for key in ("env", "teacher", "teachers"):
                if getattr(self, key):
                    raise ConfigError(f"{key}: each of the `tasks` has its own. Remove this one")
            return
        if self.env is None:
            raise ConfigError("env: is missing. Name one, or several `tasks`")
        if self.teacher is None and not self.teachers:
            raise ConfigError("teacher: is missing. Name one, or several as `teachers`")
        if self.teacher is not None and self.teachers:
            raise ConfigError("teachers: there is a `teacher` as well. Use one of the two keys")
        if self.distill.balance != "equal":
            raise ConfigError("distill.balance: it weighs several tasks. Name them as `tasks`, or remove it")
        if both := self.teachers.keys() & self.students.keys():
            raise ConfigError(f"teachers: {min(both)} is the name of a student, too. Use another name")

    @property
    def dataset_folder(self) -> Path:
        """Folder of the teacher's dataset."""
        return self.out / "dataset"

    @property
    def has_dataset(self) -> bool:
        """True if the collection of the teacher's dataset has begun."""
        return (self.dataset_folder / FILE).exists()

    def policy_folders(self, name: str, kind: Literal["students", "controls"] = "students") -> dict[int, Path]:
        """Return the folder of a student, or of its control, for each training seed."""
        return {seed: self.out / kind / name / f"seed-{seed}" for seed in self.seeds}

    def play_config(self, split: int = VALIDATION, first: int = 0, side: Side = "student") -> PlayConfig:
        """Return the settings of the episodes of a split, from number `first` on, as the evaluation plays them."""
        own = self.evaluate
        return PlayConfig(
            self.seed, split, first, side, own.sample, env_workers=own.env_workers, max_steps=own.max_steps
        )

    def read_dataset(self) -> Dataset:
        """Read the dataset of the teacher."""
        return Dataset.read([self.dataset_folder], self.collect.gamma, memory_gb=self.collect.memory_gb)


@dataclass(frozen=True)
class StudentJob:
    """One student with one training seed.

    Attributes:
        run: run with the settings.
        teacher: teacher of the run.
        dataset: dataset of the teacher; None if the recipe needs none.
        name: name of the student.
        seed: training seed.
        source: folder of the dataset; by default that of the run.
    """

    run: Run
    teacher: Policy
    dataset: Dataset | None
    name: str
    seed: int
    source: Path | None = None

    @property
    def student(self) -> AnyStudent:
        """Configuration of the student."""
        return self.run.students[self.name]

    @property
    def folder(self) -> Path:
        """Folder of the student."""
        return self.run.out / "students" / self.name / f"seed-{self.seed}"

    @property
    def dataset_folder(self) -> Path:
        """Folder of the teacher's dataset."""
        return self.source or self.run.dataset_folder

    @property
    def data(self) -> Dataset:
        """Dataset of the teacher, for recipes that need one."""
        if self.dataset is None:
            raise ConfigError(f"dataset: {type(self.run.recipe).__name__} needs one. Collect it first.")
        return self.dataset

    def in_one_process(self) -> Self:
        """Return the job for another process: without trackers, and with rounds of collection in that process alone."""
        return replace(self, run=replace(self.run, execution=SERIAL, track=()))

    def check(self) -> None:
        """Raise, before data are collected or discarded, if the students of the run cannot be distilled."""
        self.run.recipe.check(self.run, self.teacher)
        if self.run.distill.weighting in ("value", "learned"):
            own_episodes(self.data)

    def distill(self, mode: Mode, progress: Progress) -> NetworkPolicy:
        """Distill the student by the recipe of the run."""
        trust_student(self.student)  # in a worker process, which did not read the run file
        return self.run.recipe.distill(self, mode, progress)

    def open(self, mode: Mode) -> bool:
        """Prepare the folder of the student; return True if the student is there."""
        return self.inputs().open_folder(self.folder, "policy.json", mode)

    def collect_round(
        self,
        student: NetworkPolicy,
        config: CollectConfig,
        number: int,
        newest_only: bool,
        scores: Mapping[str, float],
        progress: Progress,
    ) -> Data:
        """Collect a round in which the student acts; return the data so far, or only this round's.

        `scores` are those of the tasks after the last round, if there are several.
        """
        folder = self.folder / "dataset"
        collect(
            self.run.env, self.teacher, config, folder, seed=self.seed, student=student, round=number, mode="resume",
            progress=progress, execution=self.run.execution,
        )  # fmt: skip
        folders = [folder] if newest_only else [self.dataset_folder, folder]
        return Dataset.read(
            folders, config.gamma, memory_gb=config.memory_gb, only_round=number if newest_only else None
        )

    def score(self, student: NetworkPolicy, episodes: int) -> dict[str, Any]:
        """Return the `score` of a round, by which the best one is selected: the mean return in validation episodes."""
        return {"score": self.validate(student, episodes)}

    def validate(self, policy: Policy | None, episodes: int) -> float:
        """Return the mean return of the teacher, a student or random play in validation episodes."""
        env = adapt_env(self.run.env, self.teacher)
        side: Side = "teacher" if policy is self.teacher else "student"
        return float(play(env, policy, episodes, self.run.play_config(side=side)).returns.mean())

    def inputs(self) -> StageInputs:
        """Return all that the student depends on except its seed.

        A dataset that was deleted to save room is not compared.
        """
        run, recipe = self.run, self.run.recipe
        values: dict[str, Any] = {
            "teacher": fingerprint(self.teacher) if recipe.needs_teacher else None,
            "recipe": recipe,
            f"students.{self.name}": self.student,
            "distill": run.distill,
        }
        values |= recipe.inputs(self.student)
        if not recipe.needs_dataset:
            values["env"] = run.env
        elif self.dataset_folder.exists():
            values["dataset"] = Manifest.read(self.dataset_folder).digest
        if recipe.learner is not None:
            values[recipe.learner] = getattr(run, recipe.learner)
        return StageInputs("distill", values)
