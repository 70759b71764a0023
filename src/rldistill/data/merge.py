"""Merge: several datasets of the same kind as one."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rldistill.core.errors import ConfigError, SpecMismatchError, short_repr
from rldistill.data.blocks import BlockKey
from rldistill.data.manifest import Manifest, open_derived
from rldistill.io.atomic import Mode, write_atomic
from rldistill.io.progress import Progress, stage_progress


def merge(
    sources: Sequence[Path],
    folder: Path,
    *,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> None:
    """Copy the blocks of all `sources` into one dataset, whose rounds are theirs, one after the other.

    Raises:
        SpecMismatchError: they hold different observations or labels, or come from different environments.
        ConfigError: the same block is in two of them, or `folder` is one of them or holds something already.
        CorruptArtifactError: a block is missing, truncated or altered.
    """
    if len(sources) < 2:
        raise ConfigError("nothing to merge: name at least two datasets")
    manifests = [Manifest.read(source) for source in sources]
    _require_same_kind(manifests)
    for manifest in manifests:
        manifest.check()
    rounds: dict[str, Any] = {}
    entries: list[dict[str, Any]] = []
    total = sum(manifest.num_steps for manifest in manifests)
    with open_derived(folder, sources, mode), stage_progress(progress, "merge", "steps") as report:
        for manifest in manifests:
            new = {old: str(len(rounds) + number) for number, old in enumerate(manifest.document["rounds"])}
            rounds |= {new[old]: request for old, request in manifest.document["rounds"].items()}
            for entry in manifest.blocks:
                key = BlockKey(int(new[str(entry["round"])]), entry["stream"], entry["block"])
                write_atomic(folder / key.file, partial(shutil.copyfile, manifest.folder / entry["file"]))
                entries.append({**entry, **dataclasses.asdict(key), "file": key.file})
                report.update(sum(entry["steps"] for entry in entries), total)
        Manifest.derived(folder, manifests[0], manifests[0].spec, rounds).add_blocks(entries)


def _require_same_kind(manifests: Sequence[Manifest]) -> None:
    first, seen = manifests[0], dict[str, Path]()
    for manifest in manifests:
        for what in ("spec", "env"):
            if manifest.document[what] != first.document[what]:
                different = "; ".join(_differences(manifest.document[what], first.document[what], what))
                raise SpecMismatchError(f"{manifest.folder} and {first.folder} cannot be merged: {different}")
        if not manifest.blocks:
            raise ConfigError(
                f'{manifest.folder}: the collection is not complete. Continue it with mode="resume" (--resume).'
            )
        for entry in manifest.blocks:
            if entry["sha256"] in seen:
                raise ConfigError(
                    f"{manifest.folder}: {entry['file']} is in {seen[entry['sha256']]}, too; what is there twice would "
                    "count twice"
                )
            seen[entry["sha256"]] = manifest.folder


def _differences(a: Any, b: Any, name: str) -> list[str]:
    """What differs between two documents, field by field."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return [] if a == b else [f"{name} is {short_repr(a)} and {short_repr(b)}"]
    return [text for key in {**a, **b} for text in _differences(a.get(key), b.get(key), f"{name}.{key}")]
