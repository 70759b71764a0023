"""Comparison of runs: the results of each, and the differences between their configurations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from rldistill.core.errors import ConfigError, CorruptArtifactError, error_text
from rldistill.evaluation.results import Evaluation, terminal_rows
from rldistill.evaluation.tables import NONE, Result, Rows, TableCell, rich_table
from rldistill.io.untrusted import MAX_YAML_BYTES, load_yaml, read_own

IGNORED_KEYS = ("name", "out")
COLUMNS = ("policy", "mean return", "normalized", "parameters", "env steps")


class RunComparison(Result):
    """Evaluations of several runs by folder, and by key the values that differ (None: not set)."""

    env: str
    runs: dict[str, Evaluation]
    differences: dict[str, dict[str, Any]]

    @property
    def rows(self) -> Rows:
        """Cells of the policies of all runs; teacher and random play only where they differ."""
        rows, seen = [], []
        for name, evaluation in self.runs.items():
            label = name
            for entry, row in zip(evaluation.policies.values(), terminal_rows(evaluation), strict=True):
                if entry.kind != "student" and entry.runs in seen:
                    continue
                seen.append(entry.runs)
                rows.append([TableCell("run", label), *(cell for cell in row if cell.column in COLUMNS)])
                label = ""
        return rows

    def blocks(self) -> list[Table | str]:
        """Return the environment, the table of all policies and the one of the differences."""
        blocks: list[Table | str] = [self.env, rich_table(self.rows)]
        if self.differences:
            rows = [
                [TableCell("setting", key)]
                + [TableCell(run, NONE if value is None else str(value)) for run, value in values.items()]
                for key, values in self.differences.items()
            ]
            blocks.append(rich_table(rows, left=True))
        return blocks


def compare_runs(folders: Sequence[Path | str]) -> RunComparison:
    """Compare evaluated runs of one environment.

    Raises:
        ConfigError: fewer than two runs, the same run twice, or different environments.
        CorruptArtifactError: a run has no evaluation, or its files are broken.
    """
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise ConfigError("compare: expected two or more different runs, as in `rldistill compare runs/a runs/b`.")
    found = {str(path): Evaluation.read(path / "evaluation.json") for path in paths}
    (first, reference), *others = found.items()
    for name, evaluation in others:
        for key in ("env", "env_kwargs"):
            expected, own = getattr(reference, key), getattr(evaluation, key)
            if own != expected:
                raise ConfigError(
                    f"compare: returns of different environments cannot be compared. {first} has {key} = {expected}, "
                    f"{name} has {own}."
                )
    settings = {}
    for path in paths:
        file = path / "config.yaml"
        try:
            text = read_own(file, MAX_YAML_BYTES).decode() if file.exists() else ""
            settings[str(path)] = _flat(load_yaml(text, yaml.SafeLoader))
        except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
            raise CorruptArtifactError(f"{file}: not valid YAML ({error_text(error)}). Was it edited?") from None
    keys = dict.fromkeys(key for own in settings.values() for key in own if key.split(".")[0] not in IGNORED_KEYS)
    values = {key: {name: own.get(key) for name, own in settings.items()} for key in keys}
    differences = {key: own for key, own in values.items() if len({repr(value) for value in own.values()}) > 1}
    return RunComparison(env=reference.env, runs=found, differences=differences)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by keys with dots."""
    if not isinstance(value, dict):
        return {path: value} if path else {}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}".lstrip(".")).items()}
