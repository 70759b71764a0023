"""Checks of a run that need more than the value of one field: environments, algorithms, names and folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, PlainValidator, ValidationInfo

from rldistill.core.errors import ConfigError, did_you_mean, short_repr
from rldistill.core.fields import from_error, invalid, read, validated_dataclass
from rldistill.core.policy import Policy
from rldistill.core.spec import SIDES, EnvConfig
from rldistill.envs.atari import is_atari, register_atari, rom_name
from rldistill.envs.make import wrapper_class
from rldistill.students import AnyStudent
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import algorithm_class

RESERVED_NAMES = ("teacher", "random")
"""Names of policies in results that no student can have."""


def _require_registered(env: EnvConfig) -> EnvConfig:
    import gymnasium

    if is_atari(env.id):
        try:
            rom_name(env.id)
        except ConfigError as error:
            raise from_error(error, "env.") from error
    elif ":" not in env.id:  # `module:Name-v0` registers itself when it is made
        register_atari()
        if env.id not in gymnasium.registry:
            hint = did_you_mean(env.id, gymnasium.registry)
            raise invalid(f"Gymnasium has no environment {env.id!r}.{hint}", "id")
    views = {f"views.{side}": getattr(env.views, side) for side in SIDES if env.views is not None}
    for field, wrappers in {"wrappers": env.wrappers, **views}.items():
        for wrapper in wrappers:
            try:
                wrapper_class(wrapper)
            except ConfigError as error:
                raise invalid(str(error).removeprefix("env.wrappers: "), field) from error
    return env


def _require_algorithm(config: TrainConfig) -> TrainConfig:
    try:
        algorithm_class(config)
    except ConfigError as error:
        raise from_error(error, "train.") from error
    return config


def require_usable_names(students: dict[str, AnyStudent]) -> dict[str, AnyStudent]:
    """Refuse names of students that are no folder names, or that results use for other policies."""
    for name in students:
        if name in RESERVED_NAMES or not re.fullmatch(r"\w[\w.-]*", name):
            raise invalid(f"expected letters, digits, - and _, and none of {', '.join(RESERVED_NAMES)}", name)
    return students


def require_distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse a seed that occurs twice."""
    if len(set(seeds)) < len(seeds):
        raise invalid("the same seed is there twice, expected different ones")
    return seeds


def require_folder(path: Path) -> Path:
    """Refuse a path that cannot become a folder."""
    if "\0" in str(path):
        raise invalid(f"{str(path)!r} is no name of a folder")
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
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


def _read_teacher(value: Any, info: ValidationInfo) -> Any:
    """Return the teacher of a run file: a path, or a mapping with `path`, `ensemble` or `train`."""
    if isinstance(value, str):
        return read(SavedTeacher, value)
    if isinstance(value, Mapping):
        if "path" in value:
            return read(SavedTeacher, value)
        if "ensemble" in value:
            return read(TeacherEnsemble, value)
        return read(TrainedTeacher, value).train
    if isinstance(value, SavedTeacher | TeacherEnsemble | TrainConfig) or hasattr(value, "spec"):
        return value
    raise invalid(f"found {short_repr(value)}, expected a path, or path, ensemble or train")


EnvField = Annotated[EnvConfig, AfterValidator(_require_registered)]
TeacherField = Annotated[
    SavedTeacher | TeacherEnsemble | TrainConfig | Policy,
    PlainValidator(_read_teacher, json_schema_input_type=str | SavedTeacher | TeacherEnsemble | TrainedTeacher),
]
