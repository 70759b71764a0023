"""Run files in YAML, and their loading.

The command line (`distill.epochs=3`) takes precedence over the environment (`RLDISTILL__DISTILL__EPOCHS=3`), the
environment over the file, and the file over the defaults.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from rldistill.core.errors import ConfigError, did_you_mean, error_text, short_repr
from rldistill.core.fields import USER_CODE, explain, read
from rldistill.io.untrusted import MAX_YAML_BYTES, load_yaml, read_regular
from rldistill.recipes.job import Run
from rldistill.students.storage import trust_student

PREFIX = "RLDISTILL__"
"""Prefix of environment variables that override a run file; `__` separates the keys."""


def load_run(file: Path | str, overrides: Sequence[str] = (), environment: Mapping[str, str] = os.environ) -> Run:
    """Load a run file and its overrides. Modules that it names are also found in its folder.

    Args:
        file: YAML, read with a safe loader.
        overrides: `dotted.path=value`, the value in YAML; an integer in the path is an index of a list.
        environment: variables such as `RLDISTILL__DISTILL__EPOCHS`.

    Raises:
        ConfigError: a value is not valid; with its source, its key, the expected value and the nearest valid name.
    """
    file = Path(file)
    document, sources = read_yaml(file), dict[str, str]()
    if (folder := str(file.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    for variable, text in environment.items():
        if variable.startswith(PREFIX):
            path = variable.removeprefix(PREFIX).lower().replace("__", ".")
            if not all(path.split(".")):
                raise ConfigError(f"environment variable {variable}: it names no key, as in {PREFIX}DISTILL__EPOCHS")
            sources[path] = f"environment variable {variable}"
            _assign(document, path, text, sources[path])
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"command line: found {override!r}, expected key=value, as in distill.epochs=3")
        sources[path] = "command line"
        _assign(document, path, text, sources[path])
    document.setdefault("name", run_name(file))
    document.setdefault("out", f"runs/{document['name']}")
    return read_run(document, str(file), sources)


def run_name(file: Path) -> str:
    """Return the default name of a run: that of its file, with - in place of spaces and other special characters."""
    return re.sub(r"[^\w.-]+", "-", file.stem).lstrip("-.") or "run"


def _assign(document: dict[str, Any], path: str, text: str, source: str) -> None:
    """Write a value in YAML to a path in a document."""
    value, keys = parse_value(text, f"{source}: {path}"), path.split(".")
    node: Any = document
    for depth, part in enumerate(keys):
        where, key = f"{source}: {path}: {'.'.join(keys[:depth])}", cast(Any, part)
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise ConfigError(f"{where} is a list of {len(node)}; expected an index below that")
            key = int(part)
        elif not isinstance(node, dict):
            raise ConfigError(f"{where} is {short_repr(node)}, which has nothing inside")
        if depth == len(keys) - 1:
            node[key] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]


def read_run(document: dict[str, Any], source: str = "run", overrides: Mapping[str, str] | None = None) -> Run:
    """Return the run that a document describes.

    Args:
        document: content of a run file, with `name` and `folder`. Classes that it names are imported.
        source: name of the document in error messages.
        overrides: sources, by key, of values that were not in the document from the start.
    """
    try:
        run: Run = read(Run, document, USER_CODE)
    except ValidationError as error:
        problem = explain(error.errors()[0])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        key, sources = problem.partition(": ")[0], overrides or {}
        related = [path for path in sources if f"{key}.".startswith(f"{path}.") or path.startswith(f"{key}.")]
        where = sources[min(related, key=lambda path: abs(len(path) - len(key)))] if related else source
        raise ConfigError(f"{where}: {problem}{more}") from None
    for student in run.students.values():
        trust_student(student)
    return dataclasses.replace(run, document=document)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, in which `2e-4` is a number, as in YAML 1.2, and a repeated key is an error."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Once only: afterwards the node also holds the keys of a merged mapping (`<<: *base`), which it may repeat.
        if id(node) not in self.checked:
            self.checked.add(id(node))
            keys = [key.value for key, _ in node.value]
            repeated = next((key for key in keys if keys.count(key) > 1), None)
            if repeated is not None:
                problem = f"the key {repeated!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        super().flatten_mapping(node)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_value(text: str, where: str) -> Any:
    """Return a value that is written in YAML; a ConfigError begins with `where`."""
    try:
        return load_yaml(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigError(f"{where}:{line} not valid YAML: {error.problem}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply. Use fewer levels.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # an impossible date, a number of 5,000 digits
        raise ConfigError(f"{where}: not valid YAML: {error_text(error)}") from None


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the content of a run file."""
    try:
        text = read_regular(file, MAX_YAML_BYTES).decode()
    except FileNotFoundError:
        neighbors = [str(path) for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        raise ConfigError(f"{file}: there is no such file.{did_you_mean(str(file), neighbors)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not text; expected a run file in YAML") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    document = _without_aliases(parse_value(text, str(file)))
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: found {short_repr(document)}, expected keys such as env, teacher and students")
    return document


def _without_aliases(value: Any) -> Any:
    """Return a copy in which every alias is an object of its own, so that an override changes one place only."""
    if isinstance(value, dict):
        return {key: _without_aliases(entry) for key, entry in value.items()}
    return [_without_aliases(entry) for entry in value] if isinstance(value, list) else value
