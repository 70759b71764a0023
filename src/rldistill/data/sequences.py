"""Whole episodes side by side, for recurrent students."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.heads import ActionHead
from rldistill.core.policy import Batch
from rldistill.data.dataset import Dataset

PADDING = -1
"""Row number of a step after the last episode of a lane."""


@dataclass(frozen=True)
class Window:
    """Steps of all lanes, `[T, B, ...]`.

    Attributes:
        batch: Transitions; the weight of padding is 0.
        starts: True where an episode begins, `[T, B]`.
        progress: Share of the steps in earlier windows.
    """

    batch: Batch
    starts: Tensor
    progress: float


def windows(
    dataset: Dataset, rows: NDArray[np.int64], length: int, num_lanes: int, rng: np.random.Generator | None = None
) -> Iterator[Window]:
    """Yield windows of `length` steps of the episodes of `rows`, which follow one another in `num_lanes` lanes.

    Every step occurs once. With `rng`, the episodes are in random order.
    """
    lanes = _fill_lanes(dataset, rows, num_lanes, rng)
    episodes = np.where(lanes == PADDING, PADDING, dataset.columns["episode"][lanes])
    steps = dataset.columns["step"][lanes]
    starts = (np.diff(episodes, prepend=PADDING) != 0) | (steps == 0)
    for start in range(0, lanes.shape[1], length):
        part = lanes[:, start : start + length].T
        is_step = part != PADDING
        batch = _unflatten(dataset.batch(np.maximum(part, 0).ravel()), part.shape)
        batch = dataclasses.replace(batch, weight=torch.from_numpy(is_step.astype(np.float32)))
        begins = starts[:, start : start + length].T & is_step
        yield Window(batch, torch.from_numpy(begins), start / lanes.shape[1])


def _fill_lanes(
    dataset: Dataset, rows: NDArray[np.int64], num_lanes: int, rng: np.random.Generator | None
) -> NDArray[np.int64]:
    """Return the rows of whole episodes, `[lanes, N]`, with padding after the last episode of each lane."""
    episode, step = dataset.columns["episode"][rows], dataset.columns["step"][rows]
    order = rows[np.lexsort((step, episode))]
    bounds = np.flatnonzero(np.diff(dataset.columns["episode"][order], prepend=-1, append=-1))
    parts = [order[start:end] for start, end in pairwise(bounds)]
    lanes: list[list[NDArray[np.int64]]] = [[] for _ in range(min(num_lanes, len(parts)))]
    lengths = np.zeros(len(lanes), np.int64)
    for index in rng.permutation(len(parts)) if rng is not None else range(len(parts)):
        shortest = int(lengths.argmin())
        lanes[shortest].append(parts[index])
        lengths[shortest] += len(parts[index])
    filled = np.full((len(lanes), int(lengths.max())), PADDING, np.int64)
    for lane, episodes in enumerate(lanes):
        filled[lane, : lengths[lane]] = np.concatenate(episodes)
    return filled


def _unflatten(value: Any, shape: tuple[int, ...]) -> Any:
    """Return a batch with `shape` in place of its first dimension; values that are not tensors are unchanged."""
    if isinstance(value, Tensor):
        return value.reshape(*shape, *value.shape[1:])
    if dataclasses.is_dataclass(value) and not isinstance(value, type | ActionHead):
        changed = {field.name: _unflatten(getattr(value, field.name), shape) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value
