"""Pictures as sparse differences from their median, for networks whose first layer is linear in all pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.core.policy import PolicyOutput
from rldistill.data.dataset import Dataset, spread
from rldistill.policies.layers import Flat
from rldistill.policies.network import NetworkPolicy

MAX_DENSITY = 0.2
"""Largest share of differing pixels; with more, a dense product is as fast and takes less memory."""
SAMPLE_SIZE, ROWS_PER_PART = 2_000, 512


class SparsePixels:
    """Observations of a dataset, of which only the pixels that differ from their median are kept.

    A frame of Pong differs from the median of each pixel in 1.6% of its pixels. With the median m, a linear layer of a
    picture is W x + b = W (x - m) + W m + b: the first product takes the differing pixels alone, and W m is the same
    for all pictures. The gradient of W has the same two parts. Numbers differ from those of the dense product by
    rounding only.

    Attributes:
        layer: First layer of the network.
        frames: Standardized differences of all frames, and in the last row those of an empty one, `[M + 1, pixels]`.
        median: Standardized median of each pixel of a stack, `[depth * pixels]`.
    """

    def __init__(self, policy: NetworkPolicy, dataset: Dataset, median: NDArray[np.uint8]) -> None:
        assert isinstance(policy.body, nn.Sequential)
        self.policy, self.dataset = policy, dataset
        self.frames = _differences(dataset.obs.reshape(-1, len(median)), median, 255 * float(policy.obs_std))
        self.is_linear = len(policy.body) == 1
        self.layer = policy.output if self.is_linear else policy.body[1]
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        self.median = policy.standardized(torch.from_numpy(median).repeat(weight.shape[1] // len(median)))
        weight.data = weight.detach().t().contiguous().t()  # the order in which sparse products take and return it

    @classmethod
    def of(cls, policy: NetworkPolicy, dataset: Dataset) -> SparsePixels | None:
        """Return the sparse observations of a dataset, or None if the network or the pictures do not allow them."""
        spec, layers = dataset.spec, [*policy.body.children(), policy.output]
        if not (
            type(policy) is NetworkPolicy
            and isinstance(layers[0], Flat)
            and type(layers[1]) is nn.Linear
            and spec.obs_dtype == "uint8"
            and len(spec.obs_shape) == 3
            and not (spec.nvec or spec.parts or policy.normalizes_itself)
            and (len(layers) > 2 or (spec.head.discrete and policy.value_head is policy.feature_head is None))
        ):
            return None
        pictures = dataset.obs.reshape(len(dataset.obs), -1)
        sample = pictures[spread(np.arange(len(pictures)), SAMPLE_SIZE)]
        median = np.median(sample, 0).astype(np.uint8)
        density = float((sample != median).mean())
        if density > MAX_DENSITY or not dataset.has_room_for_bytes(int(8 * density * pictures.size)):
            return None
        return cls(policy, dataset, median)

    def output(self, rows: Tensor) -> PolicyOutput:
        """Return the output of the network for some transitions of the dataset."""
        values = _Product.apply(self.layer.weight, self._stacks(rows.numpy()), self.median) + self.layer.bias  # type: ignore[no-untyped-call]
        if self.is_linear:
            return PolicyOutput(self.policy.spec.head, values)
        assert isinstance(self.policy.body, nn.Sequential)
        return self.policy.outputs(self.policy.body[2:](values))

    def _stacks(self, rows: NDArray[np.int64]) -> csc_matrix:
        """Return the differences of the pictures, or of stacks of frames, of some transitions, `[pixels, B]`."""
        frames, newest, width = self.dataset.spec.frames, self.dataset.row[rows], self.frames.shape[1]
        if frames is None:
            return self.frames[newest].T
        back, age = np.arange(frames.stack)[::-1], self.dataset.columns["step"][rows][:, None]
        index = newest[:, None] - np.minimum(back, age)
        if frames.padding == "zero":
            index[back > age] = self.frames.shape[0] - 1
        taken = self.frames[index.ravel()]
        offsets = np.tile(np.arange(frames.stack, dtype=taken.indices.dtype) * width, len(rows))
        columns = taken.indices + np.repeat(offsets, np.diff(taken.indptr))
        return csc_matrix((taken.data, columns, taken.indptr[:: frames.stack]), (frames.stack * width, len(rows)))


class _Product(torch.autograd.Function):
    """W x of pictures, given their differences from the median; the gradient is that of the weights alone."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, differences: csc_matrix, median: Tensor) -> Tensor:
        columns = weight.detach().t().contiguous()
        ctx.inputs = differences, median
        places, values, starts = map(torch.from_numpy, (differences.indices, differences.data, differences.indptr[:-1]))
        # A third of the time of SciPy's product; its gradient, however, is slow.
        return F.embedding_bag(places, columns, starts, mode="sum", per_sample_weights=values).add_(median @ columns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        differences, median = ctx.inputs
        columns = torch.from_numpy(differences @ gradient.contiguous().numpy())
        # An outer product: `addr_` takes three times as long for so few columns.
        return columns.addmm_(median[:, None], gradient.sum(0, keepdim=True)).t(), None, None


def _differences(pictures: NDArray[np.uint8], median: NDArray[np.uint8], scale: float) -> csr_matrix:
    """Return the differences of pixels from their median, divided by `scale`; the last row is that of a black frame."""
    counts, columns, values = [], [], []
    empty = np.zeros_like(median)[None]
    for start in range(0, len(pictures) + ROWS_PER_PART, ROWS_PER_PART):  # since the array may lie on disk
        part = pictures[start : start + ROWS_PER_PART] if start < len(pictures) else empty
        place = np.flatnonzero(part != median)  # several times as fast as rows and columns of `nonzero`
        column = place % len(median)
        counts.append(np.diff(np.searchsorted(place, np.arange(len(part) + 1) * len(median))))
        columns.append(column.astype(np.int32))
        values.append((part.ravel()[place].astype(np.float32) - median[column]) / np.float32(scale))
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return csr_matrix((np.concatenate(values), np.concatenate(columns), ends), (len(ends) - 1, pictures.shape[1]))
