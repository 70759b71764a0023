"""Export of a dataset to Minari; `rldistill.data.minari.read` imports it again."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError, error_text
from rldistill.core.heads import BernoulliHead, MultiCategoricalHead
from rldistill.core.spec import ObsPart, PolicySpec
from rldistill.data.blocks import LABELS, read_block
from rldistill.data.dataset import Dataset, episode_rows
from rldistill.data.manifest import Manifest, Origin
from rldistill.data.minari.common import (
    ORIGIN,
    PREFIX,
    TEACHER_OBS,
    append_row,
    datasets_root,
    import_package,
    parse_name,
)
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.encoding import split_parts


def export_minari(source: Path | str, name: str, progress: Progress | bool = True) -> None:
    """Write a dataset as Minari's `name`; the labels and the observations of the teacher are among the infos.

    Images are stored without loss, not as JPEG. An episode that had not ended is truncated, and marked `cut` in its
    infos.

    Raises:
        ConfigError: Minari has a dataset of that name, cannot store this one, or the name is not valid.
    """
    source = Path(source)
    minari = import_package()
    name = parse_name(name)
    folder = datasets_root() / name
    if folder.exists():
        raise ConfigError(f"{PREFIX}{name}: {folder} exists. Choose another name, or delete it.")
    data, manifest = Dataset.read([source]), Manifest.read(source)
    observation_space, action_space = _spaces(data.spec)
    buffers = []
    with stage_progress(progress, "export", "steps") as report:
        for arrays in _episodes(data, manifest):
            arrays["actions"] = arrays["actions"].astype(action_space.dtype)
            buffers.append(minari.data_collector.EpisodeBuffer(**arrays))
            report.update(sum(len(buffer.rewards) for buffer in buffers), len(data))
    origin = Origin(env=manifest.env, spec=manifest.spec, teacher_spec=manifest.teacher_spec)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing author, permalink and the like
            stored = minari.create_dataset_from_buffers(
                name,
                buffers,
                observation_space=observation_space,
                action_space=action_space,
                data_format="arrow",
                jpeg_encoding=False,
                description=f"Collected by rldistill in {manifest.env.id}",
            )
        stored.storage.update_metadata({ORIGIN: json.dumps(origin.model_dump())})
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # Minari leaves an incomplete folder, and never writes there again
        if not isinstance(error, ValueError | TypeError | AssertionError):
            raise
        raise ConfigError(f"{PREFIX}{name}: Minari cannot store this dataset: {error_text(error)}") from error


def _episodes(data: Dataset, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the fields of an `EpisodeBuffer` for each episode."""
    columns = data.columns
    teacher_obs = None if manifest.teacher_spec is None else _teacher_obs(manifest)
    names = [column for column in (*LABELS, "actor") if column in columns]
    for rows in episode_rows(columns):
        ended = bool(columns["terminated"][rows[-1]] | columns["truncated"][rows[-1]])
        truncated = columns["truncated"][rows].copy()
        truncated[-1] |= not ended
        infos = {name: _info(append_row(columns[name][rows])) for name in names}
        if teacher_obs is not None:
            infos[TEACHER_OBS] = teacher_obs[np.append(data.row[rows], data.next_row[rows[-1]])]
        yield {
            "observations": _observations(data, rows),
            "actions": columns["action"][rows],
            "rewards": columns["reward"][rows],
            "terminations": columns["terminated"][rows],
            "truncations": truncated,
            "infos": {**infos, "cut": [not ended] * (len(rows) + 1)},
        }


def _teacher_obs(manifest: Manifest) -> NDArray[Any]:
    """Return the observations of the teacher, `[M, F]`, in the order of those of the dataset."""
    blocks = [read_block(manifest.folder / entry.file, [TEACHER_OBS]).columns[TEACHER_OBS] for entry in manifest.blocks]
    return np.concatenate([obs.reshape(len(obs), -1) for obs in blocks])


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


def _observations(data: Dataset, rows: NDArray[np.int64]) -> Any:
    """Return the observations of an episode, `[T + 1, ...]`, with the last one; of a dict space, each entry."""
    import torch

    whole = torch.cat([data.observations(rows), data.next_observations(rows[-1:])])
    if not data.spec.parts:
        return whole.numpy()
    return {
        key: entry.numpy().astype(data.spec.entries[key].dtype) for key, entry in split_parts(whole, data.spec).items()
    }


def _info(column: NDArray[Any]) -> Any:
    """Return a column in a form that Minari can read again, which arrays of single numbers are not."""
    return column if column.ndim > 1 else column.tolist()
