"""Reading of run files in YAML."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.run.errors import short

MOST_ENTRIES = 100_000
"""Of a run file: a few aliases of aliases can stand for billions."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but `2e-4` is a number, as in YAML 1.2, and a repeated key is an error.

    A key of its own beside `<<: *other` is none: it counts over the other's.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.flat: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) not in self.flat:  # afterwards it holds the other's keys as well
            self.flat.add(id(node))
            keys = [key.value for key, _ in node.value]
            repeated = next((key for key in keys if keys.count(key) > 1), None)
            if repeated is not None:
                said = f"the key {repeated!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, said, node.start_mark)
        super().flatten_mapping(node)


def parse_value(text: str, where: str) -> Any:
    """A value in YAML, as run files and overrides have it; raises ConfigError, beginning with `where`."""
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigError(f"{where}:{line} not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date that is none, a number of 5,000 digits
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [str(path) for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        raise ConfigError(f"{file}: there is no such file.{did_you_mean(str(file), beside)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not text; expected a run file in YAML") from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    try:
        document = _unshared(parse_value(text, str(file)), file, itertools.count())
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply; does an alias hold itself?") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: found {short(document)}, expected keys such as env, teacher and students")
    return document


def _unshared(value: Any, file: Path, number: Iterator[int]) -> Any:
    """A copy in which no two places are one, as aliases are, so that an override changes the one that it names."""
    if next(number) > MOST_ENTRIES:
        raise ConfigError(f"{file}: more than {MOST_ENTRIES:,} entries; are there aliases of aliases?")
    if isinstance(value, dict):
        return {key: _unshared(entry, file, number) for key, entry in value.items()}
    return [_unshared(entry, file, number) for entry in value] if isinstance(value, list) else value
