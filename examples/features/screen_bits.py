"""Features of your own: bits of the screen of a game, from two papers on linear learning in Atari games.

A run file in this folder names them by `module:Class`:

    students:
      linear-basic: {type: linear, features: {type: "screen_bits:Basic"}}
      ridge-bprost: {type: ridge, features: {type: "screen_bits:Bprost", cell: 4}}

In Python, pass `Linear(Basic())`. To load a saved student in another program, first call `rldistill.trust(Basic)`:
a file alone never imports code.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.spec import PolicySpec
from rldistill.policies.layers import DataDependentLayer, require_images
from rldistill.students.features import Features

NumColors = Annotated[int, Ge(1), Le(64)]
Threshold = Annotated[int, Ge(1), Le(255)]
CHUNK_SIZE = 512
"""Observations whose candidate bits are in memory at once."""


@validated_dataclass
class Basic(Features):
    """Presence of each color in each cell of the newest frame, the background excluded: colors x cells of bits.

    The background is the most frequent value of each pixel in the data. Bellemare 2013, arXiv 1207.4708.

    Attributes:
        cell: Side of a cell, in pixels.
        colors: Number of equal ranges of brightness.
        threshold: Least difference of a pixel from the background, of 255.
    """

    cell: Positive = 6
    colors: NumColors = 8
    threshold: Threshold = 16

    normalizes_itself = True

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the layers and the number of features."""
        _, rows, columns = _grid("basic", spec, self.cell)
        return nn.Sequential(Cells(spec.obs_shape, self), Newest()), self.colors * rows * columns


@validated_dataclass
class Bprost(Features):
    """Basic features, and offsets between colors in the newest frame and from older frames to it.

    B-PROST, Liang 2016, arXiv 1512.01563. Of all these bits those are kept that change most in the data.

    Attributes:
        cell: Side of a cell, in pixels.
        colors: Number of equal ranges of brightness.
        threshold: Least difference of a pixel from the background, of 255.
        lags: Distances of the older frames from the newest.
        num_features: Number of bits that are kept.
    """

    cell: Positive = 6
    colors: NumColors = 8
    threshold: Threshold = 16
    lags: tuple[Positive, ...] = (3,)
    num_features: Positive = 4096

    normalizes_itself = True

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the layers, which keep no bit before they are fitted to data, and the number of features."""
        frames, rows, columns = _grid("bprost", spec, self.cell)
        if max(self.lags, default=0) >= frames:
            raise ConfigError(f"lags: {max(self.lags)} frames back are not in a stack of {frames}")
        cells = Cells(spec.obs_shape, self, self.lags)
        offsets = Offsets(self.colors, rows, columns, self.lags, self.num_features)
        return nn.Sequential(cells, offsets), self.num_features


class Cells(DataDependentLayer):
    """Layer from frames `[B, T, H, W]` to bits `[B, 1 + lags, colors, rows, columns]`, those of the newest first."""

    background: Tensor
    bits: Tensor

    def __init__(self, shape: tuple[int, ...], features: Basic | Bprost, lags: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.frames = [-1 - lag for lag in (0, *lags)]
        _, height, width = shape
        self.grid = (features.colors, height // features.cell, width // features.cell)
        self.threshold = features.threshold
        # No pixel has this value, so that before the fit nothing is background.
        self.register_buffer("background", torch.full((height, width), -255.0))
        rows, columns = (np.arange(side) // features.cell for side in (height, width))
        outside = (rows[:, None] >= self.grid[1]) | (columns >= self.grid[2])
        cell = rows[:, None] * self.grid[2] + columns
        color = (np.arange(256) * features.colors // 256)[:, None, None]
        # Bit of each value at each pixel; the last bit is dropped.
        bits = np.where(outside, self.size, color * (self.grid[1] * self.grid[2]) + cell)
        self.register_buffer("bits", torch.from_numpy(bits.reshape(-1)), persistent=False)

    @property
    def size(self) -> int:
        """Number of bits of a frame."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def fit_features(self, obs: Tensor) -> None:
        """Compute the most frequent value of each pixel."""
        self.background.copy_(obs[:, -1].flatten(1).mode(0).values.view_as(self.background))

    def forward(self, obs: Tensor) -> Tensor:
        """Return the bits."""
        pixels = obs[:, self.frames].flatten(0, 1).flatten(1).int()
        area = pixels.shape[1]
        differs = (pixels - self.background.flatten().int()).abs_() > self.threshold
        index = self.bits[(pixels * area).add_(torch.arange(area, dtype=torch.int32, device=obs.device))]
        bits = torch.zeros(len(pixels), self.size + 1, device=obs.device)
        bits.scatter_(1, index.masked_fill_(~differs, self.size), 1.0)
        return bits[:, :-1].reshape(len(obs), len(self.frames), *self.grid)


class Newest(nn.Module):
    """Bits of the newest frame, `[B, N]`."""

    def forward(self, cells: Tensor) -> Tensor:
        """Return the bits."""
        return cells[:, 0].flatten(1)


class Offsets(DataDependentLayer):
    """Bits of the newest frame, and of the offsets between two colors in it and from older frames to it."""

    selected: Tensor
    first: Tensor

    def __init__(self, colors: int, rows: int, columns: int, lags: tuple[int, ...], num_features: int) -> None:
        super().__init__()
        self.grid, self.num_basic = (colors, rows, columns), colors * rows * columns
        within = itertools.combinations_with_replacement(range(colors), 2)
        across = itertools.product(range(1, len(lags) + 1), range(colors), range(colors))
        self.pairs = [(0, a, b) for a, b in within] + [*across]
        self.area = (2 * rows) * (2 * columns)
        self.total = self.num_basic + len(self.pairs) * self.area
        # First bit of each frame and pair of colors.
        first = np.full((len(lags) + 1, colors, colors), self.total)
        for number, pair in enumerate(self.pairs):
            first[pair] = self.num_basic + number * self.area
        self.register_buffer("first", torch.from_numpy(first), persistent=False)
        # Indices of the bits that are kept, -1 for none, in floats, which policy files hold.
        self.register_buffer("selected", torch.full((num_features,), -1.0))

    def fit_features(self, cells: Tensor) -> None:
        """Keep the bits that change most."""
        candidates = torch.arange(self.total, device=cells.device)
        counts = [self._bits(part, candidates).sum(0) for part in torch.split(cells, CHUNK_SIZE)]
        share = torch.stack(counts).sum(0) / len(cells)
        variance = (share * (1 - share)).sort(descending=True, stable=True)
        kept = variance.indices[variance.values > 0][: len(self.selected)].sort().values
        self.selected.fill_(-1.0)
        self.selected[: len(kept)] = kept.float()

    def forward(self, cells: Tensor) -> Tensor:
        """Return the kept bits, `[B, N]`."""
        return self._bits(cells, self.selected.long())

    def _bits(self, cells: Tensor, wanted: Tensor) -> Tensor:
        """Return the bits with the indices `wanted`, `[B, N]`."""
        column = torch.full((self.total + 1,), len(wanted), device=cells.device)
        column[wanted[wanted >= 0]] = torch.arange(len(wanted), device=cells.device)[wanted >= 0]
        bits = torch.zeros(len(cells), len(wanted) + 1, device=cells.device)
        newest = self._cells_set(cells[:, 0])
        bits.scatter_(1, column[newest.masked_fill(newest == self.num_basic, self.total)], 1.0)
        for frame in range(cells.shape[1]):
            older = newest if frame == 0 else self._cells_set(cells[:, frame])
            bits.scatter_(1, column[self._offsets(older, newest, frame)].flatten(1), 1.0)
        return bits[:, :-1]

    def _cells_set(self, cells: Tensor) -> Tensor:
        """Return the indices of the bits that are set, `[B, largest number in a frame]`, padded with `num_basic`."""
        flat = cells.flatten(1)
        top = flat.topk(int(flat.sum(1).max()))
        return top.indices.masked_fill(top.values == 0, self.num_basic)

    def _offsets(self, older: Tensor, newest: Tensor, frame: int) -> Tensor:
        """Return the indices of the offsets from each cell of an older frame to each of the newest, `[B, n, m]`."""
        _, rows, columns = self.grid
        (color_a, row_a, column_a), (color_b, row_b, column_b) = (
            (cell // (rows * columns), cell // columns % rows, cell % columns)
            for cell in (older[:, :, None], newest[:, None])
        )
        padding = (older == self.num_basic)[:, :, None] | (newest == self.num_basic)[:, None]
        first = self.first[frame][color_a.clamp_max(self.grid[0] - 1), color_b.clamp_max(self.grid[0] - 1)]
        offset = (row_b - row_a) % (2 * rows) * (2 * columns) + (column_b - column_a) % (2 * columns)
        return torch.where(padding | (first == self.total), self.total, first + offset)


def _grid(name: str, spec: PolicySpec, cell: int) -> tuple[int, int, int]:
    """Return the number of frames in an observation, and the rows and columns of cells of one."""
    frames, height, width = require_images(name, spec)
    if spec.obs_dtype != "uint8":
        raise ConfigError(f"{name} takes pixels of bytes; these are {spec.obs_dtype}")
    if cell > min(height, width):
        raise ConfigError(f"cell: {cell} is larger than the screen of {height}x{width}")
    return frames, height // cell, width // cell
