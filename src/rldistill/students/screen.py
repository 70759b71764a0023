"""Features that are read from the screen of a game: which colours are where, how far apart, how they move."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.errors import ConfigError
from rldistill.students.cnn import require_pictures
from rldistill.students.network import FromData, require_positive
from rldistill.types import PolicySpec

CHUNK = 512
"""Observations whose features are held at once while the data is looked at."""


@dataclass(frozen=True)
class Basic:
    """Whether a colour that is not the background's is in a cell of the newest frame: colours x cells of bits.

    The background is the most frequent value of each pixel in the data. Bellemare 2013, arXiv 1207.4708.

    Attributes:
        cell: side of a cell, in pixels.
        colours: how many equal ranges of brightness are told apart.
        threshold: how far, of 255, a pixel differs from the background.
    """

    cell: int = 6
    colours: int = 8
    threshold: int = 16
    as_is = True

    def __post_init__(self) -> None:
        _require_sizes(self.cell, self.colours, self.threshold)

    def build(self, spec: PolicySpec) -> tuple[nn.Module, int]:
        """The map, and how many features it gives."""
        _, rows, columns = _grid("basic", spec, self.cell)
        cells = Cells(spec.obs_shape, self.cell, self.colours, self.threshold)
        return nn.Sequential(cells, Newest()), self.colours * rows * columns


@dataclass(frozen=True)
class Bprost:
    """Basic features, and whether two colours are a certain number of cells apart: in the newest frame, and from an
    older frame to it (B-PROST, Liang 2016, arXiv 1512.01563).

    Of all these bits those that change most in the data are kept.

    Attributes:
        cell, colours, threshold: as in `Basic`.
        lags: how many frames the older ones are back.
        num_features: bits that are kept.
    """

    cell: int = 6
    colours: int = 8
    threshold: int = 16
    lags: tuple[int, ...] = (3,)
    num_features: int = 4096
    as_is = True

    def __post_init__(self) -> None:
        _require_sizes(self.cell, self.colours, self.threshold)
        require_positive("lags, num_features", [*self.lags, self.num_features])

    def build(self, spec: PolicySpec) -> tuple[nn.Module, int]:
        """The map, which keeps nothing until it has looked at data, and how many features it gives."""
        frames, rows, columns = _grid("bprost", spec, self.cell)
        if max(self.lags, default=0) >= frames:
            raise ConfigError(f"lags: {max(self.lags)} frames back are not in a stack of {frames}")
        cells = Cells(spec.obs_shape, self.cell, self.colours, self.threshold)
        offsets = Offsets(self.colours, rows, columns, self.lags, self.num_features)
        return nn.Sequential(cells, offsets), self.num_features


@dataclass(frozen=True)
class Objects:
    """Where what moves in each region of the screen is, and how fast: by its pixels that differ from the background.

    For each region row and column of the centre, how far each has moved since the frame before and since the oldest
    one, and whether anything is there; for each two regions the difference in row and in column. In pixels; 0 where
    nothing is there. The background is, in each frame, the most frequent value of the region.

    Attributes:
        regions: by name, in pixels: top, bottom (excluded), left, right (excluded).
        threshold: how far, of 255, a pixel differs from the background.
    """

    regions: tuple[tuple[str, int, int, int, int], ...] = ()
    threshold: int = 16
    as_is = True

    def __post_init__(self) -> None:
        if not self.regions:
            raise ConfigError("regions: expected at least one, as [ball, 14, 78, 12, 72]: top, bottom, left, right")
        for region in self.regions:
            name, *sides = region if len(region) == 5 else ("",)
            if not isinstance(name, str) or not all(type(side) is int for side in sides) or not sides:
                raise ConfigError(f"regions: expected a name, top, bottom, left, right, found {region!r}")
            top, bottom, left, right = sides
            if not (0 <= top < bottom and 0 <= left < right):
                raise ConfigError(f"regions: {name}: expected top < bottom and left < right, found {sides}")
        _require_sizes(1, 1, self.threshold)

    def build(self, spec: PolicySpec) -> tuple[nn.Module, int]:
        """The map, and how many features it gives."""
        frames, height, width = require_pictures("objects", spec)
        for name, _, bottom, _, right in self.regions:
            if bottom > height or right > width:
                raise ConfigError(f"regions: {name} goes beyond the screen of {height}x{width}")
        return nn.Sequential(Centres(self.regions, self.threshold, frames)), len(self.names(frames))

    def names(self, frames: int) -> list[str]:
        """Of the features, in their order."""
        movements = ["", " moved", " moved since the oldest"] if frames > 1 else [""]
        own = [f"{name} {axis}{how}" for name, *_ in self.regions for how in movements for axis in ("row", "column")]
        own += [f"{name} seen" for name, *_ in self.regions]
        pairs = itertools.combinations([name for name, *_ in self.regions], 2)
        return own + [f"{a} {axis} - {b} {axis}" for a, b in pairs for axis in ("row", "column")]


class Cells(FromData):
    """Frames `[B, T, H, W]` of bytes to bits `[B, T, colours, rows, columns]`."""

    background: Tensor

    def __init__(self, shape: tuple[int, ...], cell: int, colours: int, threshold: int) -> None:
        super().__init__()
        self.cell, self.colours, self.threshold = cell, colours, threshold
        # No pixel has this value, so that nothing is background before the data has been looked at.
        self.register_buffer("background", torch.full(shape[1:], -255.0))

    def look(self, obs: Tensor) -> None:
        """Take the most frequent value of each pixel."""
        self.background.copy_(obs[:, -1].flatten(1).mode(0).values.view_as(self.background))

    def forward(self, obs: Tensor) -> Tensor:
        batch, frames = obs.shape[:2]
        differs = (obs.float() - self.background).abs() > self.threshold
        colour = torch.where(differs, obs.long() * self.colours // 256, self.colours)
        marks = F.one_hot(colour, self.colours + 1)[..., : self.colours].movedim(-1, 2).flatten(0, 1)
        cells: Tensor = F.max_pool2d(marks.float(), self.cell)
        return cells.view(batch, frames, *cells.shape[1:])


class Newest(nn.Module):
    """The bits of the newest frame, `[B, N]`."""

    def forward(self, cells: Tensor) -> Tensor:
        return cells[:, -1].flatten(1)


class Offsets(FromData):
    """Bits of the newest frame, and which offsets between two colours occur in it and from older frames to it."""

    selected: Tensor

    def __init__(self, colours: int, rows: int, columns: int, lags: tuple[int, ...], num_features: int) -> None:
        super().__init__()
        self.grid, self.size = (rows, columns), (2 * rows, 2 * columns)
        self.lags, self.num_basic = lags, colours * rows * columns
        within = itertools.combinations_with_replacement(range(colours), 2)
        across = itertools.product(lags, range(colours), range(colours))
        self.pairs = [(0, a, b) for a, b in within] + [*across]
        # Numbers of the bits that are kept, -1 for none, in floats, which the files of policies hold.
        self.register_buffer("selected", torch.full((num_features,), -1.0))

    def look(self, cells: Tensor) -> None:
        """Keep the bits that change most."""
        every = range(len(self.pairs))
        parts = [self._bits(part, every) for part in torch.split(cells, CHUNK)]
        share = torch.stack([part.mean(0) * len(part) for part in parts]).sum(0) / len(cells)
        most = (share * (1 - share)).sort(descending=True, stable=True)
        kept = most.indices[most.values > 0][: len(self.selected)].sort().values
        self.selected.fill_(-1.0)
        self.selected[: len(kept)] = kept.float()

    def forward(self, cells: Tensor) -> Tensor:
        chosen = self.selected.long()
        area = self.size[0] * self.size[1]
        which = (chosen[chosen >= self.num_basic] - self.num_basic) // area
        pairs = torch.unique(which).tolist()
        place = torch.zeros(len(self.pairs), dtype=torch.int64)
        place[pairs] = torch.arange(len(pairs))
        # From its number among all bits to its place among those that are worked out.
        offset = chosen - self.num_basic
        near = torch.where(
            offset < 0, chosen, self.num_basic + place[offset.clamp_min(0) // area] * area + offset % area
        )
        bits = self._bits(cells, pairs)
        return torch.where(chosen < 0, 0.0, bits[:, near.clamp_min(0)])

    def _bits(self, cells: Tensor, pairs: list[int] | range) -> Tensor:
        """Basic bits, then for each of `pairs` those of its offsets, `[B, N]`."""
        newest = cells[:, -1]
        spectra = {lag: torch.fft.rfft2(cells[:, -1 - lag], self.size) for lag in (0, *self.lags)}
        asked = [self.pairs[pair] for pair in pairs]
        if not asked:
            return newest.flatten(1)
        older = torch.stack([spectra[lag][:, a] for lag, a, _ in asked], 1)
        newer = torch.stack([spectra[0][:, b] for _, _, b in asked], 1)
        # How often the offset occurs is a correlation of the two maps.
        counts = torch.fft.irfft2(older.conj() * newer, self.size)
        return torch.cat([newest.flatten(1), (counts > 0.5).float().flatten(1)], 1)


class Centres(nn.Module):
    """`Objects` of frames `[B, T, H, W]`."""

    def __init__(self, regions: tuple[tuple[str, int, int, int, int], ...], threshold: int, frames: int) -> None:
        super().__init__()
        self.regions, self.threshold, self.frames = regions, threshold, frames

    def forward(self, obs: Tensor) -> Tensor:
        places, seen = [], []
        for _, top, bottom, left, right in self.regions:
            region = obs[:, :, top:bottom, left:right]
            usual = region.flatten(2).mode(2).values
            marks = ((region.float() - usual[..., None, None]).abs() > self.threshold).float()
            total = marks.sum((2, 3))
            row = (marks.sum(3) @ torch.arange(top, bottom, dtype=torch.float32)) / total.clamp_min(1)
            column = (marks.sum(2) @ torch.arange(left, right, dtype=torch.float32)) / total.clamp_min(1)
            places.append(torch.stack([row, column], -1))  # [B, T, 2]
            seen.append(total > 0)
        own = [self._of_region(place, there) for place, there in zip(places, seen, strict=True)]
        pairs = itertools.combinations(range(len(places)), 2)
        apart = [(places[a][:, -1] - places[b][:, -1]) * (seen[a][:, -1] & seen[b][:, -1])[:, None] for a, b in pairs]
        return torch.cat([*own, torch.stack([there[:, -1].float() for there in seen], 1), *apart], 1)

    def _of_region(self, place: Tensor, there: Tensor) -> Tensor:
        parts = [place[:, -1]]
        if self.frames > 1:
            parts += [(place[:, -1] - place[:, old]) * (there[:, -1] & there[:, old])[:, None] for old in (-2, 0)]
        return torch.cat(parts, 1)


def _grid(name: str, spec: PolicySpec, cell: int) -> tuple[int, int, int]:
    """Frames in an observation, and the rows and columns of cells of one."""
    frames, height, width = require_pictures(name, spec)
    if spec.obs_dtype != "uint8":
        raise ConfigError(f"{name} takes pixels of bytes; these are {spec.obs_dtype}")
    if cell > min(height, width):
        raise ConfigError(f"cell: {cell} is larger than the screen of {height}x{width}")
    return frames, height // cell, width // cell


def _require_sizes(cell: int, colours: int, threshold: int) -> None:
    require_positive("cell, colours, threshold", [cell, colours, threshold])
    if colours > 64 or threshold > 255:
        raise ConfigError(f"colours, threshold: expected at most 64 and 255, found {colours} and {threshold}")
