"""Metrics of a stage as JSON Lines, each with its `step`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import read_own


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the rows of `metrics.jsonl` or `curve.jsonl`; an empty list if there is no such file.

    An incomplete last line, which a kill during a write leaves, is ignored.

    Raises:
        CorruptArtifactError: Another line is not a JSON object with a `step`.
    """
    if not path.exists():
        return []
    *lines, rest = read_own(path).split(b"\n")
    rows = [_parse(path, number, line) for number, line in enumerate(lines, 1)]
    try:
        return [*rows, _parse(path, len(lines) + 1, rest)]
    except CorruptArtifactError:
        return rows


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return row
        problem = "expected a JSON object with a step"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise CorruptArtifactError(f"{path}: line {number}: {problem}. Delete the line, or start again with --overwrite.")
