"""Run with the checks of its fields, job of one student, and base class of recipes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import MinLen
from pydantic import AfterValidator, Field, PlainValidator

from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, did_you_mean, short_repr
from rldistill.core.fields import PYTHON_ONLY, OneOf, Seed, invalid, read, validated_dataclass
from rldistill.core.policy import Policy
from rldistill.core.spec import SIDES, EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.distillation.config import DistillConfig
from rldistill.envs.atari import is_atari, rom_name
from rldistill.envs.make import register, wrapper_class
from rldistill.evaluation.config import EvaluateConfig
from rldistill.exporters.config import ExportConfig
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.students import AnyStudent
from rldistill.teachers.committee import AnyMember, CommitteeMember
from rldistill.teachers.fingerprint import fingerprint
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble, TeamTeacher
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import algorithm_class

T = TypeVar("T")
RESERVED_NAMES = ("teacher", "random", "baseline")
"""Names of policies in results that no student can have."""


def _require_registered(env: EnvConfig) -> EnvConfig:
    import gymnasium

    if is_atari(env.id):
        rom_name(env.id)
    elif ":" not in env.id:  # `module:Name-v0` registers itself when it is made
        register(env.id)
        if env.id not in gymnasium.registry:
            hint = did_you_mean(env.id, gymnasium.registry)
            raise invalid(f"Gymnasium has no environment {env.id!r}.{hint}", "id")
    views = {f"views.{side}": getattr(env.views, side) for side in SIDES if env.views is not None}
    for key, wrappers in {"wrappers": env.wrappers, **views}.items():
        for wrapper in wrappers:
            try:
                wrapper_class(wrapper)
            except ConfigError as error:
                raise invalid(str(error).removeprefix("env.wrappers: "), key) from error
    return env


def _require_algorithm(config: TrainConfig) -> TrainConfig:
    algorithm_class(config)  # raises errors that begin with `train.`, of which pydantic's are made
    return config


def _require_usable_names(policies: dict[str, T]) -> dict[str, T]:
    for name in policies:
        if name in RESERVED_NAMES or not re.fullmatch(r"\w[\w.-]*", name):
            raise invalid(f"expected letters, digits, - and _, and none of {', '.join(RESERVED_NAMES)}", name)
    return policies


def _require_distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise invalid("the same seed is there twice, expected different ones")
    return seeds


def _require_folder(path: Path) -> Path:
    if "\0" in str(path):
        raise invalid(f"{str(path)!r} is no name of a folder")
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
    except OSError as error:  # such as a name that is too long
        raise invalid(f"{path}: {error.strerror}. Use another folder") from None
    if not existing.is_dir():
        raise invalid(f"{existing} is a file, expected a folder")
    return path


@validated_dataclass
class TrainedTeacher:
    """Teacher that the run trains.

    Attributes:
        train: Settings of the training.
    """

    train: Annotated[TrainConfig, AfterValidator(_require_algorithm)]


def _read_teacher(value: Any) -> Any:
    if isinstance(value, str):
        return read(SavedTeacher, value)
    if isinstance(value, Mapping):
        if "path" in value:
            return read(SavedTeacher, value)
        if "ensemble" in value:
            return read(TeacherEnsemble, value)
        if "agents" in value:
            return read(TeamTeacher, value)
        return read(TrainedTeacher, value).train
    if isinstance(value, SavedTeacher | TeacherEnsemble | TeamTeacher | TrainConfig) or hasattr(value, "spec"):
        return value
    raise invalid(f"found {short_repr(value)}, expected a path, or path, ensemble, agents or train")


def _read_member(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, Mapping) and "path" in value):
        return read(CommitteeMember, value)
    teacher = _read_teacher(value)
    if isinstance(teacher, SavedTeacher):
        return CommitteeMember(**vars(teacher))
    if isinstance(teacher, TrainConfig | TeamTeacher):
        raise invalid("expected a path, or path or ensemble with options. Train it first (`rldistill train`)")
    return teacher


def _require_member_names(teachers: dict[str, AnyMember]) -> dict[str, AnyMember]:
    if len(teachers) == 1:
        raise invalid("found one teacher, expected several. Use `teacher` for one")
    return _require_usable_names(teachers)


EnvField = Annotated[EnvConfig, AfterValidator(_require_registered)]
TeacherField = Annotated[
    SavedTeacher | TeacherEnsemble | TeamTeacher | TrainConfig | Policy,
    PlainValidator(
        _read_teacher, json_schema_input_type=str | SavedTeacher | TeacherEnsemble | TeamTeacher | TrainedTeacher
    ),
]


MemberField = Annotated[
    AnyMember, PlainValidator(_read_member, json_schema_input_type=str | CommitteeMember | TeacherEnsemble)
]


RECIPES: dict[str, type[Recipe]] = {}
"""Recipes by their name in run files, listed in `rldistill.recipes`."""


class Recipe(ABC):
    """Base class of recipes, which are frozen dataclasses of their settings.

    A run file names a recipe of your own as `module:Class`.

    Attributes:
        needs_teacher: False if any teacher would lead to the same student.
        learner: section of the run with the settings of learning from reward; None if the recipe has no such part.
    """

    needs_teacher: ClassVar[bool] = True
    learner: ClassVar[Literal["ppo", "dqn"] | None] = None

    @property
    def needs_dataset(self) -> bool:
        """True if the recipe learns from a dataset of the teacher."""
        return True

    def inputs(self, student: AnyStudent) -> dict[str, Any]:
        """Return hashes of the files that the recipe reads for a student, by the key that names them."""
        return {}

    def check(self, run: Run, teacher: Policy) -> None:  # noqa: B027 - most recipes of users have nothing to refuse
        """Raise, before data are collected or discarded, if the students of a run cannot be distilled."""

    @abstractmethod
    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        """Distill one student with one training seed into `job.folder`."""


@validated_dataclass
class Run:
    """A run: from a teacher to evaluated students. It is the content of a run file.

    Attributes:
        env: Environment.
        teacher: Path of a saved teacher, or `path` with options; `ensemble` of several; or teacher to `train`. In
            Python, also any policy.
        teachers: Several teachers by name, in place of `teacher`, each with its own options. All label all steps, they
            take turns as the acting one from episode to episode, and `distill.weighting` makes one label of theirs.
        name: Name of the run; by default that of its file.
        out: Folder of all results; by default `runs/NAME` for a run file.
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
        verify: True if a teacher that was trained elsewhere is checked before the collection.
        document: Content of the run file with its overrides; empty for a run that was made in Python.
    """

    env: EnvField
    teacher: TeacherField | None = None
    teachers: Annotated[dict[str, MemberField], AfterValidator(_require_member_names)] = field(default_factory=dict)
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = "run"
    out: Annotated[Path, AfterValidator(_require_folder)] = Path("runs/run")
    seed: Seed = 0
    collect: CollectConfig = CollectConfig()
    recipe: Annotated[Recipe, OneOf("name", RECIPES, methods=("distill",))] = field(
        default_factory=lambda: RECIPES["offline"]()
    )
    distill: DistillConfig = DistillConfig()
    ppo: PPOConfig = PPOConfig()
    dqn: DQNConfig = DQNConfig()
    control: Literal["none", "from_scratch"] = "none"
    students: Annotated[dict[str, AnyStudent], AfterValidator(_require_usable_names)] = field(default_factory=dict)
    seeds: Annotated[tuple[Seed, ...], MinLen(1), AfterValidator(_require_distinct)] = (0,)
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig | None = None
    verify: bool = True
    document: Annotated[dict[str, Any], PYTHON_ONLY] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.teacher is None and not self.teachers:
            raise ConfigError("teacher: is missing. Name one, or several as `teachers`")
        if self.teacher is not None and self.teachers:
            raise ConfigError("teachers: there is a `teacher` as well. Use one of the two keys")
        if both := self.teachers.keys() & self.students.keys():
            raise ConfigError(f"teachers: {min(both)} is the name of a student, too. Use another name")

    @property
    def dataset_folder(self) -> Path:
        """Folder of the teacher's dataset."""
        return self.out / "dataset"

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
