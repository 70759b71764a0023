"""Datasets made from other datasets: with new labels or more steps, merged, or in another format."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rldistill.collection.collect import collect
from rldistill.collection.relabel import relabel, teacher_spec
from rldistill.core.errors import ConfigError, SpecMismatchError, UntrustedFileError
from rldistill.data import merge as merging
from rldistill.data.info import dataset_folder, describe
from rldistill.data.manifest import Manifest
from rldistill.data.minari.common import PREFIX
from rldistill.data.minari.export import export_minari
from rldistill.data.minari.read import import_minari
from rldistill.io.atomic import Mode
from rldistill.io.progress import track
from rldistill.recipes.job import Run
from rldistill.run.stages import load_teacher
from rldistill.teachers.load import SavedTeacher


def relabel_dataset(
    path: Path, teacher: SavedTeacher, out: Path, features: bool, mode: Mode, quiet: bool
) -> dict[str, Any]:
    """Write a dataset with the labels of another teacher into `out`; return its description."""
    source = dataset_folder(path)
    manifest = Manifest.read(source)
    try:
        policy = teacher.load(teacher_spec(manifest))
    except (SpecMismatchError, UntrustedFileError) as error:
        if manifest.env.views is None or manifest.teacher_spec is not None:
            raise
        raise SpecMismatchError(
            f"{error}; {source} holds only the observations of the student. For a teacher with another view, collect "
            "with teacher_obs: true."
        ) from None
    with track("relabel", "steps", quiet) as progress:
        try:
            relabel(source, policy, out, features=features, mode=mode, progress=progress)
        except SpecMismatchError as error:
            raise SpecMismatchError(f"{teacher.path}: {error}") from None
    return describe(out)


def extend_dataset(run: Run, steps: int, quiet: bool) -> dict[str, Any]:
    """Collect another round into the dataset of a run; return its description."""
    folder = run.out / "dataset"
    manifest = Manifest.read(folder)
    if not manifest.blocks_of(0):
        raise ConfigError(
            f'{folder}: the collection is not complete. Continue it with mode="resume" (`rldistill collect FILE '
            "--resume`)."
        )
    number = 1 + max(number for number in manifest.rounds if manifest.blocks_of(number))
    with track("collect", "steps", quiet) as progress:
        config = dataclasses.replace(run.collect, steps=steps)
        collect(
            run.env, load_teacher(run), config, folder, seed=run.seed, round=number, mode="resume", progress=progress
        )
    return describe(folder)


def merge_datasets(paths: Sequence[Path], out: Path, mode: Mode, quiet: bool) -> dict[str, Any]:
    """Merge datasets into `out`; return its description."""
    with track("merge", "steps", quiet) as progress:
        merging.merge([dataset_folder(path) for path in paths], out, mode=mode, progress=progress)
    return describe(out)


def import_dataset(source: str, out: Path, mode: Mode, quiet: bool) -> dict[str, Any]:
    """Import a dataset of Minari into `out`; return its description."""
    _require_minari(source)
    with track("import", "steps", quiet) as progress:
        import_minari(source, out, mode=mode, progress=progress)
    return describe(out)


def export_dataset(path: Path, target: str, quiet: bool) -> None:
    """Export a dataset to the folder of Minari."""
    _require_minari(target)
    with track("export", "steps", quiet) as progress:
        export_minari(dataset_folder(path), target, progress=progress)


def _require_minari(name: str) -> None:
    if not name.startswith(PREFIX):
        raise ConfigError(f"{name}: expected {PREFIX}NAME, such as {PREFIX}pong/dqn-v0")
