"""What a run notes in its folder: what was asked, and of which machine."""

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

NOT_GUARDED = ("config.yaml", "provenance.json", "evaluation.json", "report.html", "MODEL_CARD.md", "videos")
"""What a run writes into its folder beside the stages, whose own folders are written over only where that is asked."""


@contextmanager
def noted(run: Run, *places: str) -> Iterator[None]:
    """Note what is asked and of which machine while a stage is at work in `places`.

    The note is taken back where the stage is refused, or its teacher fails, before anything has changed there.
    """
    _require_own(run.folder)
    config, machine = run.folder / "config.yaml", run.folder / "provenance.json"
    before = {path: path.read_text() if path.exists() else None for path in (config, machine)}
    there = _times(run, places)

    def write(path: Path, text: str) -> None:
        write_atomic(path, lambda temporary: temporary.write_text(text))

    write_json(machine, provenance(run.seed))  # which tells that the folder is a run's
    write(config, yaml.safe_dump(run.document, sort_keys=False))
    try:
        yield
    except RLDistillError:
        if _times(run, places) == there:
            for path, text in before.items():
                path.unlink() if text is None else write(path, text)
            with suppress(OSError):  # others have something in it
                run.folder.rmdir()
        raise


def _require_own(folder: Path) -> None:
    """Raise ConfigError for a folder that is not a run's and holds something that a run would write over."""
    machine = folder / "provenance.json"
    if machine.exists():
        with suppress(CorruptArtifactError):
            known = read_json(machine)
            if isinstance(known, dict) and "versions" in known:
                return
    for name in NOT_GUARDED:
        if (folder / name).exists():
            raise ConfigError(
                f"{folder}: it holds {name} and is not the folder of a run, which would write over that; name another "
                "place (out=...)"
            )


def _times(run: Run, places: tuple[str, ...]) -> dict[Path, int]:
    """The files in some of the run's folders, and when they were written, but for notes that come before any work."""
    files = [path for place in places for path in (run.folder / place).rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files if path.name != stage_inputs.FILE}
