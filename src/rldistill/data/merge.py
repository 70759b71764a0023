"""Datasets made from others, such as the merge of several of the same kind."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.data.blocks import BlockKey
from rldistill.data.manifest import FILE, BlockEntry, Manifest, Round, discard, discount
from rldistill.io.atomic import Mode, list_files, open_stage, require_mode, write_atomic
from rldistill.io.lock import lock_folder
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.stage_inputs import canonical, first_difference, format_json


@contextmanager
def open_derived(folder: Path, sources: Iterable[Path], mode: Mode) -> Iterator[None]:
    """Prepare the folder of a dataset that is made from others; an error within the block leaves no part of it.

    Raises:
        ConfigError: A source is in `folder`, `mode` is "resume", or "overwrite" and the folder is no dataset.
    """
    for source in sources:
        if source.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"out: {source} is in {folder} and must stay as it is. Choose another folder.")
    if mode == "overwrite" and folder.exists() and not {item.name for item in list_files(folder)} <= {FILE, "blocks"}:
        raise ConfigError(f"out: {folder} holds more than a dataset and is not discarded. Choose another folder.")
    allowed = "new", "overwrite"
    require_mode(mode, allowed)
    with lock_folder(folder):
        open_stage(folder, folder / FILE, mode, allowed)
        try:
            yield
        except BaseException:
            discard(folder)
            raise


def merge(
    sources: Sequence[Path | str],
    folder: Path | str,
    *,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> None:
    """Copy the blocks of all `sources` into one dataset, with the rounds of each after those of the one before.

    Raises:
        SpecMismatchError: The datasets have different observations or labels, or come from different environments.
        ConfigError: Two datasets contain the same block, or are condensed with different gamma; or `folder` is one of
            them or exists.
        CorruptArtifactError: A block is missing, truncated or changed.
    """
    paths, folder = [Path(source) for source in sources], Path(folder)
    if len(paths) < 2:
        raise ConfigError("merge: found one dataset, expected at least two.")
    manifests = [Manifest.read(path) for path in paths]
    folders: dict[str, Path] = {}
    for manifest in manifests:
        for name in ("spec", "teacher_spec", "env"):
            difference = first_difference(canonical(getattr(manifest, name)), getattr(manifests[0], name), name)
            if difference is not None:
                field, one, other = difference
                raise SpecMismatchError(
                    f"{manifest.folder} and {paths[0]} cannot be merged: {field} is {format_json(one)} and "
                    f"{format_json(other)}."
                )
        manifest.require_complete()
        for block in manifest.blocks:
            if block.sha256 in folders:
                raise ConfigError(
                    f"{manifest.folder}: {block.file} is in {folders[block.sha256]}, too, and would count twice. Merge "
                    "one of the two."
                )
            folders[block.sha256] = manifest.folder
        manifest.check()
    discount(manifests)
    rounds: dict[int, Round] = {}
    entries: list[BlockEntry] = []
    total = sum(entry.steps for manifest in manifests for entry in manifest.blocks)
    with open_derived(folder, paths, mode), stage_progress(progress, "merge", "steps") as report:
        for manifest in manifests:
            numbers = {number: len(rounds) + index for index, number in enumerate(manifest.rounds)}
            rounds |= {numbers[number]: round for number, round in manifest.rounds.items()}
            for entry in manifest.blocks:
                key = BlockKey(numbers[entry.round], entry.stream, entry.block)
                write_atomic(folder / key.file, partial(shutil.copyfile, manifest.folder / entry.file))
                entries.append(entry.model_copy(update={"file": key.file, "round": key.round}))
                report.update(sum(entry.steps for entry in entries), total)
        Manifest.new(folder, manifests[0], rounds).add_blocks(entries)
