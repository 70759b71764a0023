"""Runs side by side: what each student reached, and what was asked differently."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.reporting.page import read_evaluation
from rldistill.reporting.tables import rows

if TYPE_CHECKING:
    from rich.table import Table

Entry = dict[str, Any]
NEVER_COMPARED = ("name", "folder")
COLUMNS = ("policy", "mean return", "normalised", "parameters", "env steps")


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """What several evaluated runs of one environment say.

    Returns:
        `env`, `runs.<folder>` (their `evaluation.json`) and `differences.<key>` (by folder, null where it is not said).

    Raises:
        ConfigError: fewer than two runs, the same one twice, or different environments.
        CorruptArtifactError: a run has not been evaluated, or its files are broken.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ConfigError("compare: expected two or more different runs, as in `rldistill compare runs/a runs/b`")
    found = {str(folder): read_evaluation(folder / "evaluation.json") for folder in folders}
    (first, one), *others = found.items()
    for name, evaluation in others:
        for key in ("env", "env_kwargs"):
            if evaluation[key] != one[key]:
                raise ConfigError(
                    f"compare: {first} was evaluated in {key} = {one[key]}, {name} in {evaluation[key]}; returns of "
                    "different environments say nothing about each other"
                )
    asked = {str(folder): _flat(_config(folder)) for folder in folders}
    keys = dict.fromkeys(key for said in asked.values() for key in said if key.split(".")[0] not in NEVER_COMPARED)
    answers = {key: {name: said.get(key) for name, said in asked.items()} for key in keys}
    differences = {key: said for key, said in answers.items() if len({repr(value) for value in said.values()}) > 1}
    return {"env": one["env"], "runs": found, "differences": differences}


def runs_table(compared: dict[str, Any]) -> Table:
    """The policies of all runs, one under the other; the teacher and the random policy where they differ."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("run")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=column != "policy")
    seen: list[Entry] = []
    for name, evaluation in compared["runs"].items():
        shown = name
        for (_, entry), row in zip(evaluation["policies"].items(), rows(evaluation), strict=True):
            if entry["kind"] != "student" and any(entry["runs"] == other["runs"] for other in seen):
                continue
            seen.append(entry)
            cells = {cell.column: cell for cell in row}
            texts = [cells[column] for column in COLUMNS]
            noted = ("mean return", "normalised")
            table.add_row(shown, *(c.text + (f"\n{c.note}" if c.column in noted and c.note else "") for c in texts))
            shown = ""
    return table


def differences_table(compared: dict[str, Any]) -> Table:
    """What was asked differently, a line for each key of the run files."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("asked")
    for name in compared["runs"]:
        table.add_column(name)
    for key, said in compared["differences"].items():
        table.add_row(key, *("–" if value is None else str(value) for value in said.values()))
    return table


def _config(folder: Path) -> Any:
    path = folder / "config.yaml"
    if not path.exists():
        return {}
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise CorruptArtifactError(f"{path}: not valid YAML; was it edited?") from None


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Keys with dots, down to what is no mapping."""
    if not isinstance(value, dict):
        return {path: value} if path else {}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}".lstrip(".")).items()}
