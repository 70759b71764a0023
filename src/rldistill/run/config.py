"""Loading of run files.

The command line (`distill.epochs=3`) takes precedence over the environment (`RLDISTILL__DISTILL__EPOCHS=3`), the
environment over the file, and the file over the defaults.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from rldistill.core.errors import ConfigError, short_repr
from rldistill.core.fields import USER_CODE, explain, read
from rldistill.recipes.job import Run
from rldistill.run.yaml import parse_value, read_yaml
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
            sources[path] = f"environment variable {variable}"
            _assign(document, path, text, sources[path])
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"command line: found {override!r}, expected key=value, as in distill.epochs=3")
        sources[path] = "command line"
        _assign(document, path, text, sources[path])
    document.setdefault("name", file.stem)
    document.setdefault("out", f"runs/{document['name']}")
    return read_run(document, str(file), sources)


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
