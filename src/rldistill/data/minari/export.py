"""Export of a dataset to Minari; `rldistill.data.minari.read` imports it again."""

import json
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError, error_text
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import LABELS, TEACHER_OBS
from rldistill.data.dataset import Dataset, episode_rows
from rldistill.data.manifest import Manifest, Origin
from rldistill.data.minari import ORIGIN, PREFIX, append_row, open_minari
from rldistill.envs.spaces import action_space
from rldistill.io.progress import Progress, stage_progress


def export_minari(source: Path | str, name: str, progress: Progress | bool = True) -> None:
    """Write a dataset as Minari's `name`; the labels and the observations of the teacher are among the infos.

    Images are stored without loss, not as JPEG. An episode that had not ended is truncated, and marked `cut` in its
    infos.

    Raises:
        ConfigError: Minari has a dataset of that name, cannot store this one, or the name is not valid.
    """
    minari, name, folder = open_minari(name)
    if folder.exists():
        raise ConfigError(f"{PREFIX}{name}: {folder} exists. Choose another name, or delete it.")
    data, manifest = Dataset.read([Path(source)]), Manifest.read(Path(source))
    data.require_every_label("Minari")
    actions = action_space(data.spec.head)
    buffers = []
    with stage_progress(progress, "export", "steps") as report:
        for arrays in _episodes(data, manifest):
            arrays["actions"] = arrays["actions"].astype(actions.dtype)
            buffers.append(minari.data_collector.EpisodeBuffer(**arrays))
            report.update(sum(len(buffer.rewards) for buffer in buffers), len(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a missing author, permalink and the like
            stored = minari.create_dataset_from_buffers(
                name,
                buffers,
                observation_space=_observation_space(data.spec),
                action_space=actions,
                data_format="arrow",
                jpeg_encoding=False,
                description=f"Collected by rldistill in {manifest.env.id}",
            )
        origin = manifest.model_dump(include=set(Origin.model_fields))
        stored.storage.update_metadata({ORIGIN: json.dumps(origin)})
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # Minari leaves an incomplete folder, and never writes there again
        if not isinstance(error, ValueError | TypeError | AssertionError):
            raise
        raise ConfigError(f"{PREFIX}{name}: Minari cannot store this dataset: {error_text(error)}") from error


def _episodes(data: Dataset, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the fields of an `EpisodeBuffer` for each episode."""
    columns, spec = data.columns, data.spec
    if manifest.teacher_spec is not None:  # in the order of the observations of the dataset
        teacher_obs = manifest.read_column(TEACHER_OBS)
        teacher_obs = teacher_obs.reshape(len(teacher_obs), -1)
    for rows in episode_rows(columns):
        ended = bool(columns["terminated"][rows[-1]] | columns["truncated"][rows[-1]])
        truncated = columns["truncated"][rows].copy()
        truncated[-1] |= not ended
        infos: dict[str, Any] = {"cut": [not ended] * (len(rows) + 1)}
        for name in (*LABELS, "actor"):
            if name in columns:
                info = append_row(columns[name][rows])
                infos[name] = info if info.ndim > 1 else info.tolist()  # Minari reads no arrays of single numbers
        if manifest.teacher_spec is not None:
            infos[TEACHER_OBS] = teacher_obs[np.append(data.row[rows], data.next_row[rows[-1]])]
        obs = torch.cat([data.observations(rows), data.next_observations(rows[-1:])])
        entries = {
            key: entry.numpy().astype(spec.entries[key].dtype)
            for key, entry in (split_parts(obs, spec) if spec.parts else {}).items()
        }
        yield {
            "observations": entries or obs.numpy(),
            "actions": columns["action"][rows],
            "rewards": columns["reward"][rows],
            "terminations": columns["terminated"][rows],
            "truncations": truncated,
            "infos": infos,
        }


def _observation_space(spec: PolicySpec) -> spaces.Space[Any]:
    entries: dict[str, spaces.Space[Any]] = {}
    for key, part in spec.entries.items():
        dtype = np.dtype(part.dtype)
        if part.nvec and not part.shape:
            entries[key] = spaces.Discrete(part.nvec[0])
        elif part.nvec:
            entries[key] = spaces.MultiDiscrete(np.array(part.nvec).reshape(part.shape))
        elif dtype.kind in "iu":
            entries[key] = spaces.Box(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max), part.shape, dtype.type)
        else:
            entries[key] = spaces.Box(-math.inf, math.inf, part.shape, dtype.type)
    return spaces.Dict(entries) if spec.parts else entries[""]
