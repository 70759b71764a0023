"""Our datasets as those of Minari; `minari_read` is the way back."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError, MissingExtraError
from rldistill.core.heads import BernoulliHead, MultiCategoricalHead
from rldistill.core.spec import ObsPart, PolicySpec
from rldistill.data.blocks import LABELS, read_block
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import TEACHER_SPEC, Manifest
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.encoding import split_parts

PREFIX = "minari:"
OURS = "rldistill"
SEEN = "teacher_obs"


def export_minari(source: Path, name: str, progress: Progress | bool = True) -> None:
    """Write a dataset as Minari's `name`, with the teacher's labels, and what it alone saw, among its infos.

    Pictures are stored as they are, not as JPEG. An episode that was still going on ends as truncated, marked `cut` in
    its infos.

    Raises:
        ConfigError: Minari has a dataset of that name or cannot hold this one, or the name is none of its kind
            (`game/data-v0`).
    """
    minari = installed_minari()
    name = bare_name(name)
    place = datasets_root() / name
    if place.exists():
        raise ConfigError(f"{PREFIX}{name}: {place} is there already; choose another name, or delete it")
    data, manifest = Dataset.read([source]), Manifest.read(source)
    observations, actions = _spaces(data.spec)
    seen_by_teacher = None if manifest.teacher_spec is None else _seen_by_teacher(manifest)
    infos = [column for column in (*LABELS, "actor") if column in data.columns]
    order = np.lexsort((data.columns["step"], data.columns["episode"]))
    bounds = np.searchsorted(data.columns["episode"][order], np.arange(data.num_episodes + 1))
    buffers = []
    with stage_progress(progress, "export", "steps") as report:
        for start, end in pairwise(bounds):
            rows = order[start:end]
            ended = bool(data.columns["terminated"][rows[-1]] | data.columns["truncated"][rows[-1]])
            truncated = data.columns["truncated"][rows].copy()
            truncated[-1] |= not ended
            said = {column: _info(one_longer(data.columns[column][rows])) for column in infos}
            if seen_by_teacher is not None:
                said[SEEN] = seen_by_teacher[np.append(data.row[rows], data.next_row[rows[-1]])]
            buffers.append(
                minari.data_collector.EpisodeBuffer(
                    observations=_shown(data, rows),
                    actions=data.columns["action"][rows].astype(actions.dtype),
                    rewards=data.columns["reward"][rows],
                    terminations=data.columns["terminated"][rows],
                    truncations=truncated,
                    infos={**said, "cut": [not ended] * (len(rows) + 1)},
                )
            )
            report.update(int(end), len(data))
    ours = {key: manifest.document[key] for key in ("env", "spec", TEACHER_SPEC) if key in manifest.document}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an author, a permalink and the like that are not there
            made = minari.create_dataset_from_buffers(
                name,
                buffers,
                observation_space=observations,
                action_space=actions,
                data_format="arrow",
                jpeg_encoding=False,
                description=f"Collected by rldistill in {manifest.document['env']['id']}",
            )
        made.storage.update_metadata({OURS: json.dumps(ours)})
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)  # Minari leaves what it has begun, and never writes there again
        if not isinstance(error, ValueError | TypeError | AssertionError):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{PREFIX}{name}: Minari cannot hold this dataset: {why}") from error


def installed_minari() -> Any:
    """Minari; raises MissingExtraError if it is not there."""
    try:
        import minari
        import minari.data_collector
    except ImportError:
        raise MissingExtraError("Datasets of Minari", "minari") from None
    return minari


def bare_name(name: str) -> str:
    """The name without `minari:`; raises ConfigError unless it is of the kind that Minari takes."""
    from minari.dataset.minari_dataset import parse_dataset_id

    bare = name.removeprefix(PREFIX)
    try:
        if re.fullmatch(r"([\w-]+/)*[\w-]+-v\d+", bare) is None:
            raise ValueError
        parse_dataset_id(bare)
    except ValueError:
        raise ConfigError(
            f"{name}: not a name of Minari's kind, such as {PREFIX}pong/dqn-v0, with two letters or more before the /"
        ) from None
    return bare


def datasets_root() -> Path:
    """Where Minari keeps its datasets."""
    from minari.storage.datasets_root_dir import get_dataset_path

    return Path(get_dataset_path("")).resolve()


def _seen_by_teacher(manifest: Manifest) -> NDArray[Any]:
    """What the teacher alone saw, `[M, F]`, numbered as the observations of the dataset are."""
    blocks = [read_block(manifest.folder / entry["file"], [SEEN]).columns[SEEN] for entry in manifest.blocks]
    return np.concatenate([seen.reshape(len(seen), -1) for seen in blocks])


def _spaces(spec: PolicySpec) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    entries = {key: _obs_space(part) for key, part in spec.entries.items()}
    head = spec.head
    actions: spaces.Space[Any]
    if head.single_choice:
        actions = spaces.Discrete(head.nvec[0])
    elif isinstance(head, MultiCategoricalHead):
        actions = spaces.MultiDiscrete(list(head.nvec))
    elif isinstance(head, BernoulliHead):
        actions = spaces.MultiBinary(head.nvec[0])
    else:
        actions = spaces.Box(np.array(head.low, np.float32), np.array(head.high, np.float32))
    return spaces.Dict(entries) if spec.parts else entries[""], actions


def _obs_space(part: ObsPart) -> spaces.Space[Any]:
    if part.nvec and not part.shape:
        return spaces.Discrete(part.nvec[0])
    if part.nvec:
        return spaces.MultiDiscrete(np.array(part.nvec).reshape(part.shape))
    dtype = np.dtype(part.dtype)
    if dtype.kind in "iu":
        return spaces.Box(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max), part.shape, dtype.type)
    return spaces.Box(-math.inf, math.inf, part.shape, dtype.type)


def _shown(data: Dataset, rows: NDArray[np.int64]) -> Any:
    """The observations of an episode, `[T + 1, ...]`, the last one included; of dicts each entry."""
    import torch

    whole = torch.cat([data.observations(rows), data.next_observations(rows[-1:])])
    if not data.spec.parts:
        return whole.numpy()
    return {
        key: entry.numpy().astype(data.spec.entries[key].dtype) for key, entry in split_parts(whole, data.spec).items()
    }


def one_longer(column: NDArray[Any]) -> NDArray[Any]:
    """With a row of zeros for the observation that an episode ends with."""
    return np.concatenate([column, np.zeros_like(column[:1])])


def _info(column: NDArray[Any]) -> Any:
    """As Minari can read it again, which arrays of single numbers are not."""
    return column if column.ndim > 1 else column.tolist()
