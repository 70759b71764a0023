"""Comparison of runs: the results of each, and the differences between their configurations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from rldistill.core.errors import ConfigError
from rldistill.evaluation.results import Evaluation, terminal_rows
from rldistill.evaluation.tables import NONE, Result, Rows, TableCell, interval_text, number_text, rich_table
from rldistill.io.run_file import read_settings

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

    @property
    def difference_rows(self) -> Rows:
        """Cells of the settings that differ: a row for each setting, a column for each run."""
        return [
            [TableCell("setting", key)]
            + [TableCell(run, NONE if value is None else str(value)) for run, value in values.items()]
            for key, values in self.differences.items()
        ]

    @property
    def reference(self) -> str:
        """Noun of the policy with the normalized score 0."""
        return next(iter(self.runs.values())).reference

    @property
    def verdict(self) -> str:
        """Sentence on the run whose best student has the highest mean return."""
        best = {run: found for run, evaluation in self.runs.items() if (found := evaluation.best_student)}
        if not best:
            return "No student was evaluated."
        run, (name, entry) = max(best.items(), key=lambda item: item[1][1].mean.value)
        interval = interval_text(entry.mean.ci95)
        more = f", 95% interval {interval}" if interval else ""
        return f"The highest mean return has {name} of {run}: {number_text(entry.mean.value)}{more}."

    def blocks(self) -> list[Table | str]:
        """Return the environment, the table of all policies and the one of the differences."""
        blocks: list[Table | str] = [self.env, rich_table(self.rows)]
        return [*blocks, rich_table(rows, left=True)] if (rows := self.difference_rows) else blocks


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
    settings = {str(path): read_settings(path) for path in paths}
    keys = dict.fromkeys(key for own in settings.values() for key in own if key.split(".")[0] not in IGNORED_KEYS)
    values = {key: {name: own.get(key) for name, own in settings.items()} for key in keys}
    differences = {key: own for key, own in values.items() if len({repr(value) for value in own.values()}) > 1}
    return RunComparison(env=reference.env, runs=found, differences=differences)
