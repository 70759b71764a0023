"""Whole episodes side by side, for recurrent students."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    order = rows[np.lexsort((dataset.columns["step"][rows], dataset.columns["episode"][rows]))]
    bounds = np.flatnonzero(np.diff(dataset.columns["episode"][order], prepend=-1, append=-1))
    episodes = [order[start:end] for start, end in pairwise(bounds)]
    lanes: list[list[NDArray[np.int64]]] = [[] for _ in range(min(num_lanes, len(episodes)))]
    lengths = np.zeros(len(lanes), np.int64)
    for index in rng.permutation(len(episodes)) if rng is not None else range(len(episodes)):
        shortest = int(lengths.argmin())
        lanes[shortest].append(episodes[index])
        lengths[shortest] += len(episodes[index])
    filled = np.full((lengths.max(), len(lanes)), PADDING, np.int64)
    starts = np.zeros(filled.shape, np.bool_)
    for number, lane in enumerate(lanes):
        filled[: lengths[number], number] = np.concatenate(lane)
        starts[np.cumsum([0, *map(len, lane[:-1])]), number] = True
    for start in range(0, len(filled), length):
        part = filled[start : start + length]
        batch = dataset.batch(np.maximum(part, 0).ravel()).map(partial(torch.unflatten, dim=0, sizes=part.shape))
        batch = replace(batch, weight=torch.from_numpy((part != PADDING).astype(np.float32)))
        yield Window(batch, torch.from_numpy(starts[start : start + length]), start / len(filled))
