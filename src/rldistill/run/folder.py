"""Record of a run in its folder: the run file, and versions and machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from rldistill.core.errors import ConfigError, CorruptArtifactError, RLDistillError
from rldistill.io import stage_inputs
from rldistill.io.atomic import read_json, write_atomic, write_json
from rldistill.io.provenance import provenance
from rldistill.recipes.job import Run

RUN_FILES = ("config.yaml", "provenance.json", "evaluation.json", "report.html", "MODEL_CARD.md", "videos")
"""Files of a run outside of its stages' folders; these folders are protected by the stages themselves."""


@contextmanager
def record_run(run: Run, *stages: str) -> Iterator[None]:
    """Write `config.yaml` and `provenance.json`; restore the old ones if the work fails and changes no stage."""
    _require_own_folder(run.out)
    paths = run.out / "config.yaml", run.out / "provenance.json"
    old = {path: path.read_text() if path.exists() else None for path in paths}
    times = _modification_times(run, stages)
    write_json(paths[1], provenance(run.seed))  # first, since it marks the folder as that of a run
    document = run.document or stage_inputs.canonical(run)
    _write_text(paths[0], yaml.safe_dump(document, sort_keys=False))
    try:
        yield
    except RLDistillError:
        if _modification_times(run, stages) == times:
            for path, text in old.items():
                path.unlink() if text is None else _write_text(path, text)
            with suppress(OSError):  # the folder holds something else
                run.out.rmdir()
        raise


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text))


def _require_own_folder(folder: Path) -> None:
    """Raise ConfigError if the folder is not that of a run and holds a file that a run would overwrite."""
    with suppress(CorruptArtifactError):
        document = read_json(folder / "provenance.json")
        if isinstance(document, dict) and "versions" in document:
            return
    for name in RUN_FILES:
        if (folder / name).exists():
            raise ConfigError(
                f"{folder}: it is not the folder of a run, which would overwrite its {name}. Use another folder "
                "(out=...)."
            )


def _modification_times(run: Run, stages: tuple[str, ...]) -> dict[Path, int]:
    """Return the modification times of the stages' files, without those that are written before any work."""
    files = [path for stage in stages for path in (run.out / stage).rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files if path.name != stage_inputs.FILE}
