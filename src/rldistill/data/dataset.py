"""Datasets in memory and batches of them."""

from __future__ import annotations

import errno
import hashlib
import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import ILLEGAL
from rldistill.core.policy import Batch, PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import HELDOUT, LABELED, LABELS, RETURN_TO_GO, STEP, Columns, next_rows
from rldistill.data.frames import stack_frames
from rldistill.data.manifest import BlockEntry, Manifest, dataset_folder, discount

HELDOUT_FRACTION = 0.1
EVERY_LABEL = "collect.label_every: {} needs the label of each step. Set label_every: 1."
WHOLE = "dataset: {} needs whole episodes, and this dataset is condensed. Use the one that it was made from."
BATCHED = ("action", "reward", "return_to_go", "terminated", *LABELS)
"""Columns of a batch."""


@dataclass(frozen=True)
class Dataset:
    """Transitions in memory, in the order of their blocks.

    Attributes:
        spec: Observations of the student, and the head of the labels.
        columns: Arrays `[N, ...]`: action, reward, terminated, truncated, step, actor, episode, teacher, next_teacher,
            return_to_go and, if the teacher has them, value, next_value and features.
        obs: Observations `[M, ...]`, or single frames if `spec` has frames (M > N: frames before the blocks).
        row: Index `[N]` in `obs` of the newest frame or observation of each transition.
        next_row: Index `[N]` in `obs` of its next frame or observation.
        heldout: Mask `[N]` of the transitions in held-out episodes. Equal episodes are on the same side.
        num_steps: Environment steps that the data took.
        memory_gb: Limit for observations in memory.
        isolated: True if some steps stand alone, as in condensed data; then it is sparse, too.
        channels_last: Order of image stacks in memory; changes the speed only.
        sparse: True if steps without a label are left out, so that the steps of an episode do not follow one another.
        source: Arguments of `read`, if it made the dataset; another process reads it again.
    """

    spec: PolicySpec
    columns: Columns
    obs: NDArray[Any]
    row: NDArray[np.integer[Any]]
    next_row: NDArray[np.integer[Any]]
    heldout: NDArray[np.bool_]
    num_steps: int
    memory_gb: float = np.inf
    sparse: bool = False
    isolated: bool = False
    channels_last: bool = True
    source: tuple[Any, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(protocol) if self.source is None else (Dataset.read, self.source)

    @classmethod
    def read(
        cls,
        folders: Sequence[Path],
        gamma: float | None = None,
        verify: bool = True,
        memory_gb: float = np.inf,
        only_round: int | None = None,
    ) -> Dataset:
        """Read the blocks of one or several datasets of the same spec, and compare them with their hashes.

        Args:
            folders: Folders of the datasets.
            gamma: Discount of the returns-to-go; by default that of condensed data, or else 0.99.
            verify: False skips the hashes.
            memory_gb: Larger observations stay on disk, in an unnamed file beside the first dataset that is mapped into
                memory; the batches are the same.
            only_round: Round of collection to read; all rounds by default.

        Raises:
            CorruptArtifactError: A block is missing, truncated or changed.
            SpecMismatchError: The datasets have different observations or labels.
            ConfigError: Condensed data have the returns-to-go of another `gamma`.
        """
        manifests = [Manifest.read(folder) for folder in folders]
        spec, used_gamma = manifests[0].spec, discount(manifests, gamma)
        blocks = []
        for number, manifest in enumerate(manifests):
            if manifest.spec != spec:
                raise SpecMismatchError(f"{manifest.folder} and {folders[0]} have different observations or labels.")
            manifest.require_complete(only_round)
            if verify:
                manifest.check()
            blocks += [(number, manifest, block) for block in manifest.blocks_of(only_round)]
        shape = spec.obs_shape[1:] if spec.frames else spec.obs_shape
        num_rows = sum(block.rows for _, _, block in blocks)
        obs = _allocate((num_rows, *shape), np.dtype(spec.obs_dtype), memory_gb, folders[0])
        columns = _read_columns(blocks, obs)
        row, next_row = columns.pop("row"), columns.pop("next_row")
        isolated, heldout = HELDOUT in columns, _complete(columns, used_gamma)
        num_steps = sum(manifest.steps_of(only_round) for manifest in manifests)
        labeled = columns.pop(LABELED)
        dataset = cls(spec, columns, obs, row, next_row, heldout, num_steps, memory_gb, isolated, isolated)
        if not labeled.all():
            if len(np.unique(heldout[labeled])) < 2:
                raise ConfigError("dataset: fewer than two episodes have labels. Lower collect.label_every.")
            dataset = dataset.take(labeled)
        object.__setattr__(dataset, "source", ([*folders], gamma, verify, memory_gb, only_round))
        return dataset

    def __len__(self) -> int:
        return len(self.row)

    @property
    def num_episodes(self) -> int:
        """Number of episodes, unfinished ones included."""
        return int(self.columns["episode"].max()) + 1

    def require_every_label(self, reader: str | None) -> None:
        """Raise ConfigError if some steps have no label and are left out, but `reader` needs all."""
        self.require_whole(reader)
        if self.sparse and reader is not None:
            raise ConfigError(EVERY_LABEL.format(reader))

    def require_whole(self, reader: str | None) -> None:
        """Raise ConfigError if some steps stand alone, but `reader` needs whole episodes."""
        if self.isolated and reader is not None:
            raise ConfigError(WHOLE.format(reader))

    def take(self, mask: NDArray[np.bool_]) -> Dataset:
        """Return the transitions where `mask` `[N]` is True, which need not follow one another."""
        columns = {name: column[mask] for name, column in self.columns.items()}
        row, next_row, heldout = self.row[mask], self.next_row[mask], self.heldout[mask]
        return replace(self, columns=columns, row=row, next_row=next_row, heldout=heldout, sparse=True)

    def spread(self, count: int) -> NDArray[np.int64]:
        """Return the rows of at most `count` transitions, evenly spread over all."""
        return spread(np.arange(len(self)), count)

    def observations(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the observations of some transitions, `[B, *spec.obs_shape]`."""
        frames, row = self.spec.frames, self.row.take(rows)
        if frames is None:
            return torch.from_numpy(self.obs.take(row, 0))
        step = self.columns["step"][rows]
        order = self.channels_last
        return torch.from_numpy(stack_frames(self.obs, row, step, frames.stack, frames.padding, channels_last=order))

    def next_observations(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the next observations of some transitions, `[B, *spec.obs_shape]`; at an end, the last observation."""
        newest = torch.from_numpy(self.obs.take(self.next_row.take(rows), 0))
        if self.spec.frames is None:
            return newest
        stacks = torch.cat([self.observations(rows)[:, 1:], newest[:, None]], 1)
        return stacks.contiguous(memory_format=torch.channels_last) if self.channels_last else stacks

    def first_episodes(self, count: int) -> Dataset:
        """Return the transitions of the first whole episodes; raise ConfigError if there are fewer than `count`."""
        episode, ended = self.columns["episode"], self.columns["terminated"] | self.columns["truncated"]
        whole = np.unique(episode[ended])
        if len(whole) < count:
            raise ConfigError(f"dataset: it has {len(whole)} whole episodes, expected {count}. Collect more steps.")
        rows = np.flatnonzero(np.isin(episode, whole[:count]))
        columns = {name: column[rows] for name, column in self.columns.items()}
        columns["episode"] = renumbered(columns["episode"])
        obs, row, next_row = self.obs, self.row[rows], self.next_row[rows]
        if self.spec.frames is None:  # else a stack also takes the frames before its own
            used, places = np.unique(np.concatenate([row, next_row]), return_inverse=True)
            obs, (row, next_row) = obs[used], np.split(places, 2)
        heldout = _heldout(columns, episode_rows(columns))
        return Dataset(self.spec, columns, obs, row, next_row, heldout, len(rows), self.memory_gb, self.sparse)

    def has_room_for(self, num_features: int) -> bool:
        """Return True if features of each transition fit in memory and take less than its observation."""
        size = 4 * num_features
        whole = math.prod(self.spec.obs_shape) * np.dtype(self.spec.obs_dtype).itemsize
        return size < whole and self.has_room_for_bytes(size * len(self))

    def has_room_for_bytes(self, count: int) -> bool:
        """Return True if `count` more bytes fit in memory."""
        return self.obs.nbytes + count <= self.memory_gb * 1e9

    def seen_as(self, features: NDArray[Any]) -> Dataset:
        """Return the same transitions with features `[N, F]`, or numbers `[N]`, in place of the observations."""
        spec = replace(self.spec, obs_shape=features.shape[1:], obs_dtype=str(features.dtype), frames=None)
        rows = np.arange(len(self))
        return replace(self, spec=spec, obs=features, row=rows, next_row=rows)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return the transitions `rows` as tensors, with the labels of their observations and of the next ones."""
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
        """Yield batches of `size` transitions in the order of `rows`; the last may be smaller."""
        # Gather small observations for many batches at once: gathering costs more than a small network.
        chunk = size if self.spec.frames else size * 16
        for start in range(0, len(rows), chunk):
            part = self.batch(rows[start : start + chunk])
            for first in range(0, len(part.weight), size):
                yield part.map(itemgetter(slice(first, first + size)))

    def action_gap(self) -> float:
        """Return the mean difference between the best and the second-best value of the labels."""
        return action_gap(self.columns["teacher"])

    def advantage_scale(self) -> float:
        """Return the root mean square of return-to-go minus value; 1 if the teacher has no values."""
        if "value" not in self.columns:
            return 1.0
        return float(np.sqrt(np.square(self.columns["return_to_go"] - self.columns["value"]).mean()))


def spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return at most `count` of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]


def renumbered(episodes: NDArray[Any]) -> NDArray[np.int32]:
    """Return the numbers of episodes, or rows that identify them, without gaps, in the same order."""
    return np.unique(episodes, axis=0, return_inverse=True)[1].astype(np.int32)


def action_gap(values: NDArray[np.floating[Any]]) -> float:
    """Return the mean difference between the best and the second-best of action values `[N, A]`."""
    top = np.partition(values, -2, axis=1)[:, -2:]
    choices = top[top[:, 0] > ILLEGAL / 2]  # with one legal action, there is no second
    return float((choices[:, 1] - choices[:, 0]).mean()) if len(choices) else 0.0


def _read_columns(blocks: Sequence[tuple[int, Manifest, BlockEntry]], obs: NDArray[Any]) -> Columns:
    """Read blocks with the numbers of their datasets: observations into `obs`, and the columns that all blocks have."""
    parts: list[Columns] = []
    start = 0
    for number, manifest, block in blocks:
        part = manifest.read_block(block).columns
        part_obs, kind = part.pop("obs"), part.pop("kind")
        obs[start : start + len(part_obs)] = part_obs
        steps = np.flatnonzero(kind == STEP)
        rows = {"row": start + steps, "next_row": start + next_rows(kind, part.pop("ended"))}
        source = np.tile([number, block.round, block.stream], (len(steps), 1))
        part.setdefault(LABELED, np.ones(len(part_obs), bool))
        parts.append({name: column[steps] for name, column in part.items()} | rows | {"source": source})
        start += len(part_obs)
    if any(HELDOUT in part for part in parts):  # NaN where the episodes are whole
        for part in parts:
            part.setdefault(HELDOUT, np.zeros(len(part["row"]), bool))
            part.setdefault(RETURN_TO_GO, np.full(len(part["row"]), np.nan, np.float32))
    # Datasets of the same spec may differ in features and values.
    names = [name for name in parts[0] if all(name in part for part in parts)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    dtype = np.int32 if len(obs) <= np.iinfo(np.int32).max else np.int64
    columns |= {name: columns[name].astype(dtype) for name in ("row", "next_row")}
    key = np.column_stack([columns.pop("source"), columns.pop("slot"), columns["episode"]])
    columns["episode"] = renumbered(key)
    return columns


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any], memory_gb: float, folder: Path) -> NDArray[Any]:
    """Return an array in memory, or on disk if it is larger than `memory_gb`."""
    size = math.prod(shape) * dtype.itemsize
    if size <= memory_gb * 1e9:
        return np.empty(shape, dtype)
    if shutil.disk_usage(folder).free < size:  # a write to a mapped file on a full disk ends the process
        raise OSError(errno.ENOSPC, f"{size:,} bytes are needed", str(folder))
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)


def episode_rows(columns: Columns) -> list[NDArray[np.int64]]:
    """Return the rows of each episode in order of time."""
    order = np.lexsort((columns["step"], columns["episode"]))
    return np.split(order, np.flatnonzero(np.diff(columns["episode"][order])) + 1)


def _complete(columns: Columns, gamma: float) -> NDArray[np.bool_]:
    """Add the returns-to-go, and return the mask of the held-out transitions; both are stored in condensed data."""
    episodes, stored = episode_rows(columns), columns.pop(RETURN_TO_GO, None)
    computed = _returns_to_go(columns, episodes, gamma)
    if stored is None:
        columns[RETURN_TO_GO] = computed
        return _heldout(columns, episodes)
    heldout: NDArray[np.bool_] = columns.pop(HELDOUT)
    whole = np.isnan(stored)
    columns[RETURN_TO_GO] = np.where(whole, computed, stored)
    return np.where(whole, _heldout(columns, episodes), heldout) if whole.any() else heldout


def _returns_to_go(columns: Columns, episodes: list[NDArray[np.int64]], gamma: float) -> NDArray[np.float32]:
    """Return sum_k gamma^k r_{t+k}, bootstrapped with the value of the teacher if the episode did not terminate."""
    returns = np.empty(len(columns["reward"]), np.float32)
    for rows in episodes:
        rewards = columns["reward"][rows].astype(np.float64)
        last = rows[-1]
        if not columns["terminated"][last] and "next_value" in columns:
            rewards[-1] += gamma * columns["next_value"][last]
        # SciPy has a filter for this, but its import takes a second.
        sums = itertools.accumulate(rewards[::-1].tolist(), lambda later, reward: reward + gamma * later)
        returns[rows] = [*sums][::-1]
    return returns


def _heldout(columns: Columns, episodes: list[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """Hold out episodes by the hash of their actions and rewards, so that equal ones are on the same side."""
    contents = (columns["action"][rows].tobytes() + columns["reward"][rows].tobytes() for rows in episodes)
    hashes = np.array([int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64 for content in contents])
    if len(np.unique(hashes)) < 2:
        raise ConfigError("dataset: fewer than two distinct episodes. Collect more steps, or set collect.epsilon.")
    heldout = (hashes < HELDOUT_FRACTION) | (hashes == hashes.min())
    mask: NDArray[np.bool_] = (heldout & (hashes != hashes.max()))[columns["episode"]]
    return mask


def open_dataset(path: Path | str, gamma: float | None = None, memory_gb: float = math.inf) -> Dataset:
    """Read a dataset, given its folder or the folder of its run; see `Dataset.read`."""
    return Dataset.read([dataset_folder(Path(path))], gamma, memory_gb=memory_gb)
