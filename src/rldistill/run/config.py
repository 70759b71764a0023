"""Loading of run files.

The command line (`distill.epochs=3`) takes precedence over the environment (`RLDISTILL__DISTILL__EPOCHS=3`), the
environment over the file, and the file over the defaults.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rldistill.core.errors import ConfigError
from rldistill.core.fields import USER_CODE, explain, read
from rldistill.recipes.job import Run
from rldistill.run.overrides import apply_overrides
from rldistill.run.yaml import read_yaml
from rldistill.students.storage import trust_student


def load_run(file: Path, overrides: Sequence[str] = (), environment: Mapping[str, str] = os.environ) -> Run:
    """Load a run file and its overrides.

    Args:
        file: YAML, read with a safe loader.
        overrides: `dotted.path=value`, the value in YAML; an integer in the path is an index of a list.
        environment: variables such as `RLDISTILL__DISTILL__EPOCHS`.

    Raises:
        ConfigError: a value is not valid; with its source, its key, the expected value and the nearest valid name.
    """
    document = read_yaml(file)
    sources = apply_overrides(document, overrides, environment)
    document.setdefault("name", file.stem)
    document.setdefault("out", f"runs/{document['name']}")
    return read_run(document, str(file), sources)


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
        where = _source(problem.partition(": ")[0], overrides or {}) or source
        raise ConfigError(f"{where}: {problem}{more}") from None
    for student in run.students.values():
        trust_student(student)
    return dataclasses.replace(run, document=document)


def _source(key: str, sources: Mapping[str, str]) -> str | None:
    """Return the source of the override nearest to `key`, or of one inside it."""
    path = key
    while path:
        if path in sources:
            return sources[path]
        path = path.rpartition(".")[0]
    return next((source for override, source in sources.items() if override.startswith(f"{key}.")), None)
