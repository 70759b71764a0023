"""The run file: YAML, checked by pydantic, built into the plain dataclasses that the stages take.

The command line (`distill.epochs=3`) counts over the environment (`RLDISTILL__DISTILL__EPOCHS=3`), that over the file,
and the file over the defaults.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, PrivateAttr, Strict, Tag, ValidationError
from pydantic_core import PydanticCustomError

from rldistill.collection.config import CollectConfig
from rldistill.core import schedules
from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.distillation.config import DistillConfig
from rldistill.envs.atari import is_atari, register_atari, rom_name
from rldistill.envs.config import SIDES, EnvConfig
from rldistill.envs.make import wrapper_class
from rldistill.evaluation.config import EvaluateConfig
from rldistill.losses import LOSSES
from rldistill.losses.objective import Term
from rldistill.recipes import RECIPES, AnyRecipe, Offline
from rldistill.recipes.job import Run
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.run.errors import explained
from rldistill.run.overrides import _assign
from rldistill.run.schema import Schema, Strictly, Tagged, bad_key
from rldistill.run.yaml import _Loader, _read
from rldistill.students import STUDENTS, AnyStudent
from rldistill.students.features import FEATURES
from rldistill.students.storage import trust
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import algorithm_class

PREFIX = "RLDISTILL__"


RESERVED = ("teacher", "random")


def known_env(env: EnvConfig) -> EnvConfig:
    """The environment, if it and its wrappers are known; raises PydanticCustomError with the nearest name if not."""
    import gymnasium

    if is_atari(env.id):
        try:
            rom_name(env.id)
        except ConfigError as error:
            raise bad_key("id", str(error).removeprefix("env.id: ")) from error
    elif ":" not in env.id:  # `module:Name-v0` registers itself when it is made
        register_atari()
        if env.id not in gymnasium.registry:
            hint = did_you_mean(env.id, gymnasium.registry)
            raise bad_key("id", f"Gymnasium has no environment {env.id!r}.{hint}")
    views = {f"views.{side}": getattr(env.views, side) for side in SIDES if env.views is not None}
    for where, wrappers in {"wrappers": env.wrappers, **views}.items():
        for wrapper in wrappers:
            try:
                wrapper_class(wrapper)
            except ConfigError as error:
                raise bad_key(where, str(error).removeprefix("env.wrappers: ")) from error
    return env


def _known_algorithm(config: TrainConfig) -> TrainConfig:
    try:
        algorithm_class(config)
    except ConfigError as error:
        where, _, what = str(error).removeprefix("train.").partition(": ")
        raise bad_key(where, what) from error
    return config


def _usable_names(students: dict[str, AnyStudent]) -> dict[str, AnyStudent]:
    for name in students:
        if name in RESERVED or not re.fullmatch(r"\w[\w.-]*", name):
            raise bad_key(name, f"expected letters, digits, - and _, and none of {', '.join(RESERVED)}")
    return students


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise PydanticCustomError("repeated", "the same seed is there twice, expected different ones")
    return seeds


SCHEMA = Schema(
    unions=(
        Tagged("type", {c.__name__.lower(): c for c in Schema.members(schedules.Schedule)}),
        Tagged("type", STUDENTS, needs=("build",)),
        Tagged("type", FEATURES),
        Tagged("name", RECIPES, needs=("distill",)),
        Tagged("name", LOSSES, needs=("__call__", "student_head")),
    ),
    numbers=(schedules.Constant,),
    texts={SavedTeacher: "path"},
    flat={Term: "loss"},
    checks={EnvConfig: known_env, TrainConfig: _known_algorithm},
)


class _Trained(Strictly):
    train: Annotated[TrainConfig, SCHEMA]


def _kind_of_teacher(value: Any) -> str:
    keys = value if isinstance(value, Mapping) else {}
    return "saved" if isinstance(value, str) or "path" in keys else "several" if "ensemble" in keys else "trained"


Teacher = Annotated[
    Annotated[SavedTeacher, SCHEMA, Tag("saved")]
    | Annotated[TeacherEnsemble, SCHEMA, Tag("several")]
    | Annotated[_Trained, Tag("trained")],
    Discriminator(_kind_of_teacher),
]


class RunConfig(Strictly):
    """A run file. Its sections are the dataclasses of the stages, whose documentation says what they hold."""

    name: Annotated[str, Strict(), Field(pattern=r"^\w[\w.-]*$")]
    env: Annotated[EnvConfig, SCHEMA]
    teacher: Teacher
    out: Path
    seed: Annotated[int, Strict(), Field(ge=0, lt=1 << 32)] = 0
    collect: Annotated[CollectConfig, SCHEMA] = CollectConfig()
    recipe: Annotated[AnyRecipe, SCHEMA] = Offline()
    distill: Annotated[DistillConfig, SCHEMA] = DistillConfig()
    ppo: Annotated[PPOConfig, SCHEMA] = PPOConfig()
    dqn: Annotated[DQNConfig, SCHEMA] = DQNConfig()
    control: Literal["none", "from_scratch"] = "none"
    students: Annotated[dict[str, Annotated[AnyStudent, SCHEMA]], AfterValidator(_usable_names)] = Field(
        default_factory=dict
    )
    seeds: Annotated[
        tuple[Annotated[int, Strict(), Field(ge=0, lt=1 << 32)], ...], Field(min_length=1), AfterValidator(_distinct)
    ] = (0,)
    evaluate: Annotated[EvaluateConfig, SCHEMA] = EvaluateConfig()

    _document: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, file: Path, overrides: Sequence[str] = (), environment: Mapping[str, str] = os.environ) -> RunConfig:
        """Read a run file and what counts over it.

        Args:
            file: YAML, read with a safe loader.
            overrides: `dotted.path=value`, the value in YAML; an integer in the path is an index of a list.
            environment: variables such as `RLDISTILL__DISTILL__EPOCHS`.

        Raises:
            ConfigError: what is wrong, where, what was expected and the nearest right name.
        """
        document = _read(file)
        sources = {"": str(file)}
        for variable, text in environment.items():
            if variable.startswith(PREFIX):
                path = variable.removeprefix(PREFIX).lower().replace("__", ".")
                _assign(document, path, text, f"environment variable {variable}", sources)
        for override in overrides:
            path, equals, text = override.partition("=")
            if not equals or not all(path.split(".")):
                raise ConfigError(f"command line: found {override!r}, expected key=value, as in distill.epochs=3")
            _assign(document, path, text, "command line", sources)
        document.setdefault("name", file.stem)
        document.setdefault("out", f"runs/{document['name']}")
        try:
            config = cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(explained(error.errors(), document, sources)) from None
        if "\0" in str(config.out):
            raise ConfigError(f"{sources.get('out', file)}: out: {str(config.out)!r} is no name of a folder")
        config._document = document
        if not (there := next(place for place in (config.out, *config.out.parents) if place.exists())).is_dir():
            raise ConfigError(f"{sources.get('out', file)}: out: {there} is a file, expected a folder")
        return config

    def _planned_teacher(self) -> SavedTeacher | TeacherEnsemble | TrainConfig:
        return self.teacher.train if isinstance(self.teacher, _Trained) else self.teacher

    def plan(self) -> Run:
        """The run as the plain dataclasses that the stages take."""
        for student in self.students.values():
            trust(type(student))
        return Run(
            name=self.name,
            folder=self.out,
            seed=self.seed,
            env=self.env,
            teacher=self._planned_teacher(),
            collect=self.collect,
            recipe=self.recipe,
            distill=self.distill,
            ppo=self.ppo,
            dqn=self.dqn,
            control=self.control == "from_scratch",
            students=self.students,
            seeds=self.seeds,
            evaluate=self.evaluate,
            document=self._document,
        )


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
