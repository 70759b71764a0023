"""Whole episodes side by side, for students that remember."""

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

from rldistill.core.batch import Batch
from rldistill.core.heads import ActionHead
from rldistill.data.dataset import Dataset


@dataclass(frozen=True)
class Window:
    """Some steps of all lanes.

    Attributes:
        batch: `[T, B, ...]`; the weight is 0 behind the last episode of a lane.
        starts: `[T, B]`, where an episode begins.
        done: the share of the lanes that lies before it.
    """

    batch: Batch
    starts: Tensor
    done: float


def windows(
    dataset: Dataset, rows: NDArray[np.int64], length: int, lanes: int, rng: np.random.Generator | None = None
) -> Iterator[Window]:
    """The episodes of `rows`, each whole and in its order, in `lanes` rows of them, cut every `length` steps.

    No step is left out and none is there twice. With `rng` the episodes come in a random order.
    """
    order = _lanes(dataset, rows, lanes, rng)
    for start in range(0, order.shape[1], length):
        at = order[:, start : start + length].T
        there = at >= 0
        batch = _folded(dataset.batch(np.maximum(at, 0).ravel()), at.shape)
        batch = dataclasses.replace(batch, weight=torch.from_numpy(there.astype(np.float32)))
        begins = there & (dataset.columns["step"][np.maximum(at, 0)] == 0)
        previous = order[:, start - 1] if start else np.full(len(order), -1)
        cut = np.vstack([previous[None], at[:-1]])
        begins |= there & (_episode(dataset, cut) != _episode(dataset, at))
        yield Window(batch, torch.from_numpy(begins), start / order.shape[1])


def _episode(dataset: Dataset, at: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(at >= 0, dataset.columns["episode"][np.maximum(at, 0)], -1)


def _lanes(dataset: Dataset, rows: NDArray[np.int64], lanes: int, rng: np.random.Generator | None) -> NDArray[np.int64]:
    """`[lanes, N]`, the rows of whole episodes one after the other, -1 behind the last."""
    episode, step = dataset.columns["episode"][rows], dataset.columns["step"][rows]
    order = rows[np.lexsort((step, episode))]
    bounds = np.flatnonzero(np.diff(dataset.columns["episode"][order], prepend=-1, append=-1))
    parts = [order[start:end] for start, end in pairwise(bounds)]
    chosen = rng.permutation(len(parts)) if rng is not None else np.arange(len(parts))
    filled: list[list[NDArray[np.int64]]] = [[] for _ in range(min(lanes, len(parts)))]
    lengths = np.zeros(len(filled), np.int64)
    for number in chosen:
        lane = int(lengths.argmin())
        filled[lane].append(parts[number])
        lengths[lane] += len(parts[number])
    out = np.full((len(filled), int(lengths.max())), -1, np.int64)
    for lane, episodes in enumerate(filled):
        out[lane, : lengths[lane]] = np.concatenate(episodes)
    return out


def _folded(value: Any, shape: tuple[int, ...]) -> Any:
    """A batch with its first dimension unfolded to `shape`; what is no tensor stays as it is."""
    if isinstance(value, Tensor):
        return value.reshape(*shape, *value.shape[1:])
    if dataclasses.is_dataclass(value) and not isinstance(value, type | ActionHead):
        changed = {field.name: _folded(getattr(value, field.name), shape) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value
