"""Read a dataset into memory and draw batches from it."""

from __future__ import annotations

import errno
import hashlib
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter
from torch import Tensor

from rldistill.core.batch import Batch
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.heads import ILLEGAL, ActionHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import LABELS, STEP, read_block, successors
from rldistill.data.frames import stack_frames
from rldistill.data.manifest import Manifest

HELDOUT_FRACTION = 0.1
BATCHED = ("action", "reward", "return_to_go", "terminated", *LABELS)
"""Columns of a batch."""


@dataclass(frozen=True)
class Dataset:
    """Transitions in memory, in the order of their blocks.

    Attributes:
        spec: what the observations are and what the labels mean.
        columns: `[N, ...]` arrays: action, reward, terminated, truncated, step, actor, episode, teacher, next_teacher,
            return_to_go and, where there are, value, next_value and features.
        obs: `[M, ...]` observations, or single frames where `spec.frames` is given (M > N: lead-in frames).
        row: `[N]`, where in `obs` each transition's newest frame or observation stands.
        next_row: `[N]`, where that of what it led to stands.
        heldout: `[N]`, whether the transition's episode is held out. Equal episodes are on the same side.
        num_steps: environment steps it took.
        memory_gb: what the observations may take in memory.
    """

    spec: PolicySpec
    columns: dict[str, NDArray[Any]]
    obs: NDArray[Any]
    row: NDArray[np.integer[Any]]
    next_row: NDArray[np.integer[Any]]
    heldout: NDArray[np.bool_]
    num_steps: int
    memory_gb: float = np.inf

    @classmethod
    def read(
        cls,
        folders: Sequence[Path],
        gamma: float = 0.99,
        verify: bool = True,
        memory_gb: float = np.inf,
        only_round: int | None = None,
    ) -> Dataset:
        """Read the blocks of one or several datasets of the same spec.

        Args:
            folders: where they are.
            gamma: discount of the returns-to-go.
            verify: whether every block is compared with its hash.
            memory_gb: observations larger than this stay on disk, in a nameless file beside the first dataset that is
                mapped into memory; what is drawn is the same.
            only_round: the one round of collection to read; all of them if none is named.

        Raises:
            CorruptArtifactError: a block is missing, truncated or altered.
            SpecMismatchError: the datasets hold different observations or labels.
        """
        manifests = [Manifest.read(folder) for folder in folders]
        spec = manifests[0].spec
        for folder, manifest in zip(folders, manifests, strict=True):
            if manifest.spec != spec:
                raise SpecMismatchError(f"{folder} and {folders[0]} hold different observations or labels")
            if not manifest.blocks or not (only_round is None or manifest.has_round(only_round)):
                raise CorruptArtifactError(
                    f'{folder}: the collection is not complete. Continue it with mode="resume" (--resume).'
                )
            if verify:
                manifest.check()
        blocks = [
            (number, folder, b)
            for number, (folder, m) in enumerate(zip(folders, manifests, strict=True))
            for b in m.blocks
            if only_round is None or b["round"] == only_round
        ]
        num_rows = sum(block["rows"] for _, _, block in blocks)
        shape = spec.obs_shape[1:] if spec.frames else spec.obs_shape
        obs = _room((num_rows, *shape), np.dtype(spec.obs_dtype), memory_gb, folders[0])
        parts: list[dict[str, NDArray[Any]]] = []
        rows: list[NDArray[np.int64]] = []
        next_rows: list[NDArray[np.int64]] = []
        at = 0
        for number, folder, entry in blocks:
            columns = read_block(folder / entry["file"]).columns
            part_obs = columns.pop("obs")
            obs[at : at + len(part_obs)] = part_obs
            kind = columns.pop("kind")
            kept = kind == STEP
            rows.append(at + np.flatnonzero(kept))
            next_rows.append(at + successors(kind, columns["ended"]))
            at += len(part_obs)
            part = {name: column[kept] for name, column in columns.items()}
            part["source"] = np.tile([number, entry["round"], entry["stream"]], (len(part["slot"]), 1))
            parts.append(part)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        episode_key = np.column_stack([joined.pop("source"), joined.pop("slot"), joined["episode"]])
        joined["episode"] = np.unique(episode_key, axis=0, return_inverse=True)[1].astype(np.int32)
        order, bounds = _episodes(joined["episode"], joined["step"])
        joined["return_to_go"] = _returns_to_go(joined, order, bounds, gamma)
        heldout = _heldout(joined, order, bounds)
        joined.pop("ended")
        row, next_row = (np.concatenate(numbers).astype(_index_dtype(num_rows)) for numbers in (rows, next_rows))
        return cls(spec, joined, obs, row, next_row, heldout, sum(b["steps"] for _, _, b in blocks), memory_gb)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def num_episodes(self) -> int:
        return int(self.columns["episode"].max()) + 1

    def spread(self, most: int) -> NDArray[np.int64]:
        """At most `most` transitions, evenly spread over all."""
        return np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64)

    def observations(self, rows: NDArray[np.int64]) -> Tensor:
        """The observations of some transitions, `[B, *spec.obs_shape]`."""
        if self.spec.frames is None:
            return torch.from_numpy(self.obs.take(self.row.take(rows), 0))
        stacks = stack_frames(
            self.obs, self.row[rows], self.columns["step"][rows], self.spec.frames.stack, self.spec.frames.padding
        )
        return torch.from_numpy(stacks)

    def next_observations(self, rows: NDArray[np.int64]) -> Tensor:
        """What some transitions led to, `[B, *spec.obs_shape]`; of an episode that ended, its last observation."""
        newest = torch.from_numpy(self.obs.take(self.next_row.take(rows), 0))
        if self.spec.frames is None:
            return newest
        stacks = torch.cat([self.observations(rows)[:, 1:], newest[:, None]], 1)
        return stacks.contiguous(memory_format=torch.channels_last)  # as `observations` are

    def has_room_for(self, num_features: int) -> bool:
        """Whether so many numbers a transition take less memory than its observation, and no more than allowed."""
        size = 4 * num_features
        whole = math.prod(self.spec.obs_shape) * np.dtype(self.spec.obs_dtype).itemsize
        return size < whole and self.obs.nbytes + size * len(self) <= self.memory_gb * 1e9

    def seen_as(self, features: NDArray[np.float32]) -> Dataset:
        """The same transitions with `[N, F]` numbers, made of their observations, in place of these."""
        spec = replace(self.spec, obs_shape=features.shape[1:], obs_dtype="float32", frames=None)
        rows = np.arange(len(self))
        return replace(self, spec=spec, obs=features, row=rows, next_row=rows)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The transitions `rows` as tensors, with the teacher's labels for them and for their successors."""
        column = {name: torch.from_numpy(self.columns[name].take(rows, 0)) for name in BATCHED if name in self.columns}
        head = self.spec.head
        return Batch(
            obs=self.observations(rows),
            action=column["action"],
            reward=column["reward"],
            return_to_go=column["return_to_go"],
            terminated=column["terminated"],
            teacher=PolicyOutput(head, column["teacher"], column.get("value"), column.get("features")),
            next_teacher=PolicyOutput(head, column["next_teacher"], column.get("next_value")),
            weight=torch.ones(len(rows)),
        )

    def batches(self, rows: NDArray[np.int64], size: int) -> Iterator[Batch]:
        """`rows` in their order, `size` at a time; the last may be smaller."""
        # Small observations are gathered for many batches at once: the gathering would cost more than the network.
        chunk = size if self.spec.frames else size * 16
        for start in range(0, len(rows), chunk):
            part = self.batch(rows[start : start + chunk])
            yield from [part] if chunk == size else _split(part, size)

    def action_gap(self) -> float:
        """The mean difference between the best and the second-best value in the teacher's labels."""
        return action_gap(self.columns["teacher"])

    def advantage_scale(self) -> float:
        """The root mean square of the returns-to-go less the teacher's values; 1 where the teacher tells no values."""
        if "value" not in self.columns:
            return 1.0
        return float(np.sqrt(np.square(self.columns["return_to_go"] - self.columns["value"]).mean()))


def action_gap(values: NDArray[np.floating[Any]]) -> float:
    """The mean difference between the best and the second-best of `[N, A]`."""
    top = np.partition(values, -2, axis=1)[:, -2:]
    choices = top[top[:, 0] > ILLEGAL / 2]  # where only one action is legal, there is nothing to prefer
    return float((choices[:, 1] - choices[:, 0]).mean()) if len(choices) else 0.0


def _room(shape: tuple[int, ...], dtype: np.dtype[Any], memory_gb: float, folder: Path) -> NDArray[Any]:
    """An array in memory, or on disk where it would take more than `memory_gb`."""
    size = math.prod(shape) * dtype.itemsize
    if size <= memory_gb * 1e9:
        return np.empty(shape, dtype)
    if shutil.disk_usage(folder).free < size:  # or the first write beyond what is free would end the process
        raise OSError(errno.ENOSPC, f"{size:,} bytes are needed", str(folder))
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)


def _index_dtype(num_rows: int) -> type[np.integer[Any]]:
    return np.int32 if num_rows <= np.iinfo(np.int32).max else np.int64


def _split(value: Any, size: int) -> Iterable[Any]:
    """A batch, or a part of one, `size` rows at a time; what is no tensor is repeated."""
    if isinstance(value, Tensor):
        return torch.split(value, size)
    if is_dataclass(value) and not isinstance(value, ActionHead):
        return map(type(value), *(_split(getattr(value, field.name), size) for field in fields(value)))
    return repeat(value)


def _episodes(episode: NDArray[np.int64], step: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order in which each episode is contiguous and in time, and where in it each episode begins."""
    order = np.lexsort((step, episode))
    return order, np.append(np.searchsorted(episode[order], np.arange(episode.max() + 1)), len(order))


def _returns_to_go(
    columns: dict[str, NDArray[Any]], order: NDArray[np.int64], bounds: NDArray[np.int64], gamma: float
) -> NDArray[np.float32]:
    """sum_k gamma^k r_{t+k}, bootstrapped with the teacher's value where an episode was cut."""
    out = np.empty(len(order), np.float32)
    for start, end in pairwise(bounds):
        rows = order[start:end]
        rewards = columns["reward"][rows].astype(np.float64)
        last = rows[-1]
        if not columns["terminated"][last] and "next_value" in columns:
            rewards[-1] += gamma * columns["next_value"][last]
        out[rows] = lfilter([1.0], [1.0, -gamma], rewards[::-1])[::-1]
    return out


def _heldout(
    columns: dict[str, NDArray[Any]], order: NDArray[np.int64], bounds: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Hold an episode out by the hash of what happened in it, so that equal ones are never on both sides."""
    keys = []
    for start, end in pairwise(bounds):
        rows = order[start:end]
        content = columns["action"][rows].tobytes() + columns["reward"][rows].tobytes()
        keys.append(int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64)
    key = np.array(keys)
    if len(set(keys)) < 2:
        raise ConfigError("the dataset holds fewer than two distinct episodes: collect more steps or add epsilon noise")
    held = key < HELDOUT_FRACTION
    held = (held | (key == key.min())) & (key != key.max())
    chosen: NDArray[np.bool_] = held[columns["episode"]]
    return chosen
