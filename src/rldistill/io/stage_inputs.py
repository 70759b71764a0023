"""Inputs of a stage: the record of everything that the files of its folder were made from."""

import dataclasses
import math
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np

from rldistill.core.errors import ConfigError, is_library
from rldistill.io.atomic import Mode, list_files, open_stage, read_json, sha256_file, write_json

FILE, SOURCES = "inputs.json", "sources"
SPEED_ONLY = frozenset({"num_threads", "device", "env_workers", "memory_gb", "teacher_timeout"})
"""Settings of our own classes that change the speed and at most the last digits of a result, if there is one."""


@dataclass(frozen=True)
class StageInputs:
    """Everything that the files of a stage's folder depend on, except the seed in the folder's name.

    Settings with their default value are left out of `inputs.json`, so that a setting that is added later, with a
    default, does not invalidate older folders.

    Attributes:
        verb: command that makes the folder, for the advice in errors.
        values: configs, students and hashes by their key in the run file.
        code: further values that name code of the user, such as the environment.
    """

    verb: str
    values: Mapping[str, Any]
    code: tuple[Any, ...] = ()

    @property
    def advice(self) -> str:
        """Command that starts the stage again."""
        return f'start again with mode="overwrite" (`rldistill {self.verb} FILE --overwrite`).'

    def to_json(self) -> dict[str, Any]:
        """Return the canonical JSON of all values, and the hashes of the user's modules that they name."""
        values = {key: canonical(value) for key, value in self.values.items()}
        sources = source_hashes([values, *map(canonical, self.code)])
        return values | ({SOURCES: sources} if sources else {})

    def write(self, folder: Path) -> None:
        """Write `inputs.json` into a folder."""
        write_json(folder / FILE, self.to_json())

    def require_same(self, folder: Path) -> None:
        """Raise ConfigError if the folder has an `inputs.json` with other values."""
        path = folder / FILE
        if not path.exists():  # copied or saved by hand, so there is nothing to compare with
            return
        self.require_equal(read_json(path, f"Delete it, or {self.advice}"), str(path))

    def require_equal(self, known: Mapping[str, Any], where: str) -> None:
        """Raise ConfigError if the inputs read from JSON are others; keys that have no value now are not compared.

        Code of the user that was edited is a warning only, since most edits change no result.
        """
        for key, value in self.values.items():
            if (difference := first_difference(known.get(key), value, key)) is not None:
                name, was, now = difference
                raise ConfigError(
                    f"{where}: {name} was {format_json(was)}, now it is {format_json(now)}. "
                    f"Go on with the old value, or {self.advice}"
                )
        before = known.get(SOURCES)
        for module, digest in self.to_json().get(SOURCES, {}).items():
            if isinstance(before, dict) and before.get(module, digest) != digest:
                edited = f"the code of {module} was edited after it was used here"
                warnings.warn(f"{edited}. If its results are others now, {self.advice}", stacklevel=3)

    def open_folder(self, folder: Path, result: str, mode: Mode) -> bool:
        """Prepare the folder as `open_stage` does and write `inputs.json`; raise ConfigError for other inputs, too."""
        if list_files(folder) == [folder / FILE]:
            (folder / FILE).unlink()  # an earlier attempt failed before it made anything
        if mode != "overwrite":
            self.require_same(folder)
        is_new = mode == "overwrite" or not list_files(folder)
        exists = open_stage(folder, folder / result, mode)
        if is_new:
            self.write(folder)
        return exists


def source_hashes(value: Any) -> dict[str, str]:
    """Return the hash of the file of each of the user's modules that JSON names as `module:Name`."""
    if isinstance(value, Mapping | list):
        items = value.values() if isinstance(value, Mapping) else value
        return {module: digest for item in items for module, digest in source_hashes(item).items()}
    match = re.match(r"([A-Za-z_][\w.]*):[A-Za-z_]", value) if isinstance(value, str) else None
    file = getattr(sys.modules.get(match[1]), "__file__", None) if match else None
    if match is None or file is None or is_library(file) or not Path(file).is_file():
        return {}
    return {match[1]: sha256_file(Path(file))[:32]}


def canonical(value: Any) -> Any:
    """Return `value` as JSON; of a dataclass, its type and the fields that differ from their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: (canonical(getattr(value, name)), default) for name, default in _defaults(value).items()}
        return {"type": _name(type(value))} | {name: now for name, (now, default) in fields.items() if now != default}
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return canonical(value.tolist())
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return _name(value)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _defaults(record: Any) -> dict[str, Any]:
    """Return the canonical defaults of the fields that count; MISSING as text for a field without one."""
    return {
        field.name: canonical(field.default if field.default_factory is MISSING else field.default_factory())
        for field in dataclasses.fields(record)
        if field.compare and not (field.name in SPEED_ONLY and _is_own(type(record)))
    }


def _is_own(cls: Any) -> bool:
    return str(cls.__module__).startswith("rldistill.")


def _name(cls: Any) -> str:
    # Without our own module, so that older folders stay valid when a class moves within the package.
    return str(cls.__qualname__) if _is_own(cls) else f"{cls.__module__}:{cls.__qualname__}"


def first_difference(known: Any, now: Any, key: str) -> tuple[str, Any, Any] | None:
    """Return the first difference between JSON and a value: its key and both values; None if they are equal."""
    pairs: list[tuple[Any, Any, Any]]
    if dataclasses.is_dataclass(now) and isinstance(known, dict) and known.get("type") == _name(type(now)):
        defaults = _defaults(now)
        pairs = [(name, known.get(name, default), getattr(now, name)) for name, default in defaults.items()]
        pairs += [(name, item, None) for name, item in known.items() if name not in {*defaults, "type"}]
    elif isinstance(now, Mapping) and isinstance(known, dict):
        items = {str(name): item for name, item in now.items()}
        pairs = [(name, known.get(name), items.get(name)) for name in {**known, **items}]
    elif (
        isinstance(now, list | tuple)
        and isinstance(known, list)
        and len(now) == len(known)
        and dict in map(type, known)
    ):
        pairs = [(number, *pair) for number, pair in enumerate(zip(known, now, strict=True))]
    else:
        value = canonical(now)
        return None if known == value else (key, known, value)
    differences = (first_difference(was, is_now, f"{key}.{name}") for name, was, is_now in pairs)
    return next((difference for difference in differences if difference is not None), None)


def format_json(value: Any) -> str:
    """Return canonical JSON in the form of the call that makes its dataclass."""
    if isinstance(value, dict):
        items = {key: format_json(item) for key, item in value.items() if key != "type"}
        if "type" not in value:
            return f"{{{', '.join(f'{key}: {item}' for key, item in items.items())}}}"
        arguments = ", ".join(f"{key}={item}" for key, item in items.items())
        return f"{value['type']}({arguments})" if items else str(value["type"])
    if isinstance(value, list):
        return f"[{', '.join(map(format_json, value))}]"
    return "none" if value is None else str(value)
