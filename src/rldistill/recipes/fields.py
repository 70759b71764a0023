"""Fields of a run with the checks of their values."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, PlainValidator, WrapValidator

from rldistill.core.errors import ConfigError, short_repr
from rldistill.core.fields import invalid, read, validated_dataclass
from rldistill.core.policy import Policy
from rldistill.core.spec import SIDES, EnvConfig
from rldistill.envs.atari import is_atari, rom_name
from rldistill.envs.make import nearest_id, register, wrapper_class
from rldistill.io.storage import local_folder
from rldistill.teachers.committee import AnyMember, CommitteeMember
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
            raise invalid(f"Gymnasium has no environment {env.id!r}.{nearest_id(env.id)}", "id")
    if both := env.worlds.keys() & env.kwargs.keys():
        raise invalid(f"{min(both)} is in `worlds`, too. Use one of the two keys", "kwargs")
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


def require_usable_names(policies: dict[str, T]) -> dict[str, T]:
    """Return policies or tasks by name; raise an error of pydantic for a name that is no name of a folder."""
    for name in policies:
        if name in RESERVED_NAMES or not re.fullmatch(r"\w[\w.-]*", name):
            raise invalid(f"expected letters, digits, - and _, and none of {', '.join(RESERVED_NAMES)}", name)
    return policies


def require_distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Return training seeds; raise an error of pydantic if two are equal."""
    if len(set(seeds)) < len(seeds):
        raise invalid("the same seed is there twice, expected different ones")
    return seeds


def from_url(out: Any) -> Any:
    """Return the folder for the value of `out`, which may be a URL; raise an error of pydantic for a wrong one."""
    try:
        return local_folder(out)
    except ConfigError as error:
        raise invalid(str(error).removeprefix("out: ")) from None


def require_folder(path: Path) -> Path:
    """Return a path without `~`; raise an error of pydantic if it cannot be a folder."""
    if "\0" in str(path):
        raise invalid(f"{str(path)!r} is no name of a folder")
    try:
        path = path.expanduser()  # as Arrow does, which would write its blocks elsewhere than all other files are
    except RuntimeError:
        raise invalid(f"{path}: there is no such user. Use another folder") from None
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
    several = ". Several: `teacher: {ensemble: [...]}`, or `teachers` with names" if isinstance(value, list) else ""
    raise invalid(f"found {short_repr(value)}, expected a path, or path, ensemble, agents or train{several}")


def _read_env(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


def _read_member(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, Mapping) and "path" in value):
        return read(CommitteeMember, value)
    teacher = _read_teacher(value)
    if isinstance(teacher, SavedTeacher):
        return CommitteeMember(**vars(teacher))
    if isinstance(teacher, TrainConfig | TeamTeacher):
        raise invalid("expected a path, or path or ensemble with options. Train it first (`rldistill train`)")
    return teacher


def require_member_names(teachers: dict[str, AnyMember]) -> dict[str, AnyMember]:
    """Return teachers by name; raise an error of pydantic for one teacher, or a name that is no name of a folder."""
    if len(teachers) == 1:
        raise invalid("found one teacher, expected several. Use `teacher` for one")
    return require_usable_names(teachers)


EnvField = Annotated[
    EnvConfig,
    BeforeValidator(_read_env, json_schema_input_type=str | EnvConfig),
    AfterValidator(_require_registered),
]
TeacherField = Annotated[
    SavedTeacher | TeacherEnsemble | TeamTeacher | TrainConfig | Policy,
    PlainValidator(
        _read_teacher, json_schema_input_type=str | SavedTeacher | TeacherEnsemble | TeamTeacher | TrainedTeacher
    ),
]


MemberField = Annotated[
    AnyMember, PlainValidator(_read_member, json_schema_input_type=str | CommitteeMember | TeacherEnsemble)
]
UNLESS_TASKS = WrapValidator(lambda value, validate: None if value is None else validate(value))
"""Annotation of a field that is None in a run of several tasks."""
