"""Environments and teachers of a command line, where no run file names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from pydantic import ValidationError

from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.core.fields import explain, read
from rldistill.core.heads import HeadKind
from rldistill.envs.config import EnvConfig
from rldistill.recipes.checks import EnvField
from rldistill.run.yaml import parse_value
from rldistill.search.config import Measure
from rldistill.teachers.load import SavedTeacher


def env_from_options(env_id: str, kwargs: Sequence[str] = ()) -> EnvConfig:
    """The environment of a command line: an id, and `key=value` for its keyword arguments."""
    values = {}
    for text in kwargs:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--env-kwarg: found {text!r}, expected key=value, as in continuous=true")
        values[key] = parse_value(value, f"--env-kwarg {key}")
    try:
        env: EnvConfig = read(EnvField, {"id": env_id, "kwargs": values})
    except ValidationError as error:
        raise ConfigError(f"--env: {explain(error.errors()[0])}") from None
    return env


def teacher_from_options(
    path: str, activation: str | None, head: str | None, scale: float, output: str | None
) -> SavedTeacher:
    """The teacher of a command line."""
    if head is not None and head not in get_args(HeadKind):
        known = get_args(HeadKind)
        raise ConfigError(f"--head: there is no {head!r}.{did_you_mean(head, known)} Known: {', '.join(known)}")
    return SavedTeacher(path, activation, cast(HeadKind | None, head), scale, output)


def share_from_options(text: str) -> float:
    """`5%` or `0.05`."""
    number = parse_value(text.strip().removesuffix("%"), "--margin")
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ConfigError(f"--margin: expected a share such as 5%, found {text!r}")
    return number / 100 if text.strip().endswith("%") else float(number)


def measure_from_options(name: str) -> Measure:
    """What a search is to make small."""
    if name not in get_args(Measure):
        known = get_args(Measure)
        raise ConfigError(f"--by: there is no {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}")
    return cast(Measure, name)


def teachers_from_options(texts: Sequence[str]) -> dict[str, SavedTeacher]:
    """Teachers of a command line by their paths, each with what its file does not tell: `q.onnx,head=q_values`."""
    found = {}
    for text in texts:
        path, *options = text.split(",") if not Path(text).exists() else [text]
        values = dict(option.partition("=")[::2] for option in options)
        for key, value in values.items():
            if key not in ("activation", "head", "scale", "output") or not value:
                known = ("activation=", "head=", "scale=", "output=")
                raise ConfigError(f"{text}: after a comma expected one of {', '.join(known)}{did_you_mean(key, known)}")
        scale = parse_value(values.get("scale", "1"), text)
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise ConfigError(f"{text}: scale: expected a number, found {values['scale']!r}")
        if path in found:
            raise ConfigError(f"{path}: named twice; a second reading of one file needs a copy of it")
        told = values.get("activation"), values.get("head"), float(scale), values.get("output")
        found[path] = teacher_from_options(path, *told)
    return found
