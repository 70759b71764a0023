"""Features that are read from the screen of a game: which colours are where, how far apart, how they move."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.spec import PolicySpec
from rldistill.policies.layers import DataDependentLayer, require_positive
from rldistill.students.cnn import require_pictures

CHUNK = 512
"""Observations whose features are held at once while the data is looked at."""
SOME = 16
"""Of so many pixels one is looked at for a guess at the background."""


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
    normalizes_itself = True

    def __post_init__(self) -> None:
        _require_sizes(self.cell, self.colours, self.threshold)

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """The map, and how many features it gives."""
        _, rows, columns = _grid("basic", spec, self.cell)
        return nn.Sequential(Cells(spec.obs_shape, self), Newest()), self.colours * rows * columns


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
    normalizes_itself = True

    def __post_init__(self) -> None:
        _require_sizes(self.cell, self.colours, self.threshold)
        require_positive("lags, num_features", [*self.lags, self.num_features])

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """The map, which keeps nothing until it has looked at data, and how many features it gives."""
        frames, rows, columns = _grid("bprost", spec, self.cell)
        if max(self.lags, default=0) >= frames:
            raise ConfigError(f"lags: {max(self.lags)} frames back are not in a stack of {frames}")
        cells = Cells(spec.obs_shape, self, self.lags)
        offsets = Offsets(self.colours, rows, columns, self.lags, self.num_features)
        return nn.Sequential(cells, offsets), self.num_features


@dataclass(frozen=True)
class Objects:
    """Where what moves in each region of the screen is, how fast, and where it will meet the others.

    Of each region the pixels that differ from its background, which is in each frame its most frequent value: row and
    column of their centre, each pixel with the weight of its difference, so that what lies between two pixels is told;
    how far that moved between each two frames; how many pixels they are. For each two regions the difference in row
    and in column. And, with the speed of the last frame and the edges of its own region as walls, for each region and
    each other one when it is in the other's column, as 1 / (1 + frames until then), and by how much its row is then
    another; the same for rows. In pixels; 0 where nothing is there or nothing moves that way.

    Attributes:
        regions: by name, in pixels: top, bottom (excluded), left, right (excluded).
        threshold: how far, of 255, a pixel differs from the background.
    """

    regions: tuple[tuple[str, int, int, int, int], ...] = ()
    threshold: int = 16
    normalizes_itself = True

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

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """The map, and how many features it gives."""
        frames, height, width = require_pictures("objects", spec)
        _require_bytes("objects", spec)
        for name, _, bottom, _, right in self.regions:
            if bottom > height or right > width:
                raise ConfigError(f"regions: {name} goes beyond the screen of {height}x{width}")
        return nn.Sequential(Centres(self.regions, self.threshold, frames)), len(self.names(frames))

    def names(self, frames: int) -> list[str]:
        """Of the features, in their order."""
        regions = [name for name, *_ in self.regions]
        moved = [" moved", *(f" moved {ago} before" for ago in range(1, frames - 1))][: frames - 1]
        own = [f"{name} {axis}{how}" for name in regions for how in ("", *moved) for axis in ("row", "column")]
        own += [f"{name} size" for name in regions]
        apart = itertools.product(itertools.combinations(regions, 2), ("row", "column"))
        own += [f"{a} {axis} - {b} {axis}" for (a, b), axis in apart]
        ways = [("column", "row"), ("row", "column")] if frames > 1 else []
        for (a, b), (along, across) in itertools.product(itertools.permutations(regions, 2), ways):
            own += [f"{a} soon in {b} {along}", f"{a} {across} - {b} {across} when in {b} {along}"]
        return own


class Cells(DataDependentLayer):
    """Frames `[B, T, H, W]` of bytes to bits `[B, 1 + lags, colours, rows, columns]`, those of the newest first."""

    background: Tensor
    bits: Tensor

    def __init__(self, shape: tuple[int, ...], features: Basic | Bprost, lags: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.frames = [-1 - lag for lag in (0, *lags)]
        _, height, width = shape
        self.grid = (features.colours, height // features.cell, width // features.cell)
        self.threshold = features.threshold
        # No pixel has this value, so that nothing is background before the data has been looked at.
        self.register_buffer("background", torch.full((height, width), -255.0))
        rows, columns = (np.arange(side) // features.cell for side in (height, width))
        outside = (rows[:, None] >= self.grid[1]) | (columns >= self.grid[2])
        cell = rows[:, None] * self.grid[2] + columns
        colour = (np.arange(256) * features.colours // 256)[:, None, None]
        # Of a pixel's value and place, the bit that it sets; the last one is thrown away.
        bits = np.where(outside, self.size, colour * (self.grid[1] * self.grid[2]) + cell)
        self.register_buffer("bits", torch.from_numpy(bits.reshape(-1)), persistent=False)

    @property
    def size(self) -> int:
        """How many bits a frame has."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def fit_features(self, obs: Tensor) -> None:
        """Take the most frequent value of each pixel."""
        self.background.copy_(obs[:, -1].flatten(1).mode(0).values.view_as(self.background))

    def forward(self, obs: Tensor) -> Tensor:
        pixels = obs[:, self.frames].flatten(0, 1).flatten(1).int()
        area = pixels.shape[1]
        differs = (pixels - self.background.flatten().int()).abs_() > self.threshold
        place = self.bits[(pixels * area).add_(torch.arange(area, dtype=torch.int32, device=obs.device))]
        bits = torch.zeros(len(pixels), self.size + 1, device=obs.device)
        bits.scatter_(1, place.masked_fill_(~differs, self.size), 1.0)
        return bits[:, :-1].reshape(len(obs), len(self.frames), *self.grid)


class Newest(nn.Module):
    """The bits of the newest frame, `[B, N]`."""

    def forward(self, cells: Tensor) -> Tensor:
        return cells[:, 0].flatten(1)


class Offsets(DataDependentLayer):
    """Bits of the newest frame, and which offsets between two colours occur in it and from older frames to it."""

    selected: Tensor
    first: Tensor

    def __init__(self, colours: int, rows: int, columns: int, lags: tuple[int, ...], num_features: int) -> None:
        super().__init__()
        self.grid, self.num_basic = (colours, rows, columns), colours * rows * columns
        within = itertools.combinations_with_replacement(range(colours), 2)
        across = itertools.product(range(1, len(lags) + 1), range(colours), range(colours))
        self.pairs = [(0, a, b) for a, b in within] + [*across]
        self.area = (2 * rows) * (2 * columns)
        self.total = self.num_basic + len(self.pairs) * self.area
        # Of a frame and two colours, the number of its first bit.
        first = np.full((len(lags) + 1, colours, colours), self.total)
        for number, pair in enumerate(self.pairs):
            first[pair] = self.num_basic + number * self.area
        self.register_buffer("first", torch.from_numpy(first), persistent=False)
        # Numbers of the bits that are kept, -1 for none, in floats, which the files of policies hold.
        self.register_buffer("selected", torch.full((num_features,), -1.0))

    def fit_features(self, cells: Tensor) -> None:
        """Keep the bits that change most."""
        every = torch.arange(self.total, device=cells.device)
        share = sum(self._bits(part, every).sum(0) for part in torch.split(cells, CHUNK)) / len(cells)
        most = (share * (1 - share)).sort(descending=True, stable=True)  # type: ignore[union-attr]
        kept = most.indices[most.values > 0][: len(self.selected)].sort().values
        self.selected.fill_(-1.0)
        self.selected[: len(kept)] = kept.float()

    def forward(self, cells: Tensor) -> Tensor:
        return self._bits(cells, self.selected.long())

    def _bits(self, cells: Tensor, asked: Tensor) -> Tensor:
        """Those bits of all whose numbers are asked for, `[B, N]`."""
        place = torch.full((self.total + 1,), len(asked), device=cells.device)
        place[asked[asked >= 0]] = torch.arange(len(asked), device=cells.device)[asked >= 0]
        bits = torch.zeros(len(cells), len(asked) + 1, device=cells.device)
        newest = self._set(cells[:, 0])
        bits.scatter_(1, place[newest.masked_fill(newest == self.num_basic, self.total)], 1.0)
        for frame in range(cells.shape[1]):
            older = newest if frame == 0 else self._set(cells[:, frame])
            bits.scatter_(1, place[self._apart(older, newest, frame)].flatten(1), 1.0)
        return bits[:, :-1]

    def _set(self, cells: Tensor) -> Tensor:
        """The numbers of the bits that are set, `[B, most of them in one frame]`, `num_basic` where there are fewer."""
        flat = cells.flatten(1)
        found = flat.topk(int(flat.sum(1).max()))
        return found.indices.masked_fill(found.values == 0, self.num_basic)

    def _apart(self, older: Tensor, newest: Tensor, frame: int) -> Tensor:
        """The numbers of the offsets from each cell of an older frame to each of the newest, `[B, n, m]`."""
        _, rows, columns = self.grid
        (of_a, row_a, column_a), (of_b, row_b, column_b) = (
            (at // (rows * columns), at // columns % rows, at % columns) for at in (older[:, :, None], newest[:, None])
        )
        none = (older == self.num_basic)[:, :, None] | (newest == self.num_basic)[:, None]
        first = self.first[frame][of_a.clamp_max(self.grid[0] - 1), of_b.clamp_max(self.grid[0] - 1)]
        offset = (row_b - row_a) % (2 * rows) * (2 * columns) + (column_b - column_a) % (2 * columns)
        return torch.where(none | (first == self.total), self.total, first + offset)


class Centres(nn.Module):
    """`Objects` of frames `[B, T, H, W]`."""

    def __init__(self, regions: tuple[tuple[str, int, int, int, int], ...], threshold: int, frames: int) -> None:
        super().__init__()
        self.regions, self.threshold, self.frames = regions, threshold, frames

    def forward(self, obs: Tensor) -> Tensor:
        place, size = self._found(obs)
        seen = size > 0
        speed = (place[:, :, 1:] - place[:, :, :-1]) * (seen[:, :, 1:] & seen[:, :, :-1])[..., None]
        own = torch.cat([place[:, :, -1:], speed.flip(2)], 2)  # [B, regions, T, 2]
        place, seen = place[:, :, -1], seen[:, :, -1]
        walls = [((top, bottom - 1), (left, right - 1)) for _, top, bottom, left, right in self.regions]
        pairs = itertools.combinations(range(len(walls)), 2)
        apart = [(place[:, a] - place[:, b]) * (seen[:, a] & seen[:, b])[:, None] for a, b in pairs]
        meetings: list[Tensor] = []
        if self.frames > 1:
            for (a, b), along in itertools.product(itertools.permutations(range(len(walls)), 2), (1, 0)):
                across = walls[a][1 - along]
                soon, offset = self._meeting(place[:, a], speed[:, a, -1], place[:, b], along, across)
                both = seen[:, a] & seen[:, b]
                meetings.append(torch.stack([soon * both, offset * both], 1))
        return torch.cat([own.flatten(1), size[:, :, -1], *apart, *meetings], 1)

    def _found(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of the centre of each region, `[B, regions, T, 2]`, and of how many pixels it is."""
        places, sizes = [], []
        for _, top, bottom, left, right in self.regions:
            pixels = obs[:, :, top:bottom, left:right].flatten(0, 1).flatten(1)
            background = _most_frequent(pixels)
            frame, at = (pixels != background[:, None]).nonzero(as_tuple=True)
            differs = (pixels[frame, at].float() - background[frame].float()).abs()
            differs *= differs > self.threshold
            row, column = top + at // (right - left), left + at % (right - left)
            sums = torch.zeros(len(pixels), 4, device=obs.device)
            sums.index_add_(0, frame, torch.stack([differs * row, differs * column, differs, differs > 0], 1))
            places.append((sums[:, :2] / sums[:, 2:3].clamp_min(1)).view(len(obs), self.frames, 2))
            sizes.append(sums[:, 3].view(len(obs), self.frames))
        return torch.stack(places, 1), torch.stack(sizes, 1)

    @staticmethod
    def _meeting(
        place: Tensor, speed: Tensor, other: Tensor, along: int, walls: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """When what is at `place`, `[B, 2]`, is level with another along an axis, and how far apart they are then."""
        across, (low, high) = 1 - along, walls
        way = other[:, along] - place[:, along]
        comes = way * speed[:, along] > 0
        frames = torch.where(comes, way / torch.where(comes, speed[:, along], 1.0), 0.0)
        comes |= way == 0  # and is there already
        # Unfolded, the walls are mirrors: every second image of the region is turned round.
        twice = 2 * max(high - low, 1)
        at = (place[:, across] + frames * speed[:, across] - low).remainder(twice)
        at = low + torch.minimum(at, twice - at)
        return comes / (1 + frames), (at - other[:, across]) * comes


def _most_frequent(pixels: Tensor) -> Tensor:
    """The most frequent value of each row of `[N, P]`.

    The middle one of some pixels is it wherever more than half of the row has that value; only the others are sorted.
    """
    found = pixels[:, ::SOME].median(1).values
    unsure = 2 * (pixels == found[:, None]).count_nonzero(1) <= pixels.shape[1]
    if unsure.any():
        found[unsure] = pixels[unsure].mode(1).values
    return found


def _grid(name: str, spec: PolicySpec, cell: int) -> tuple[int, int, int]:
    """Frames in an observation, and the rows and columns of cells of one."""
    frames, height, width = require_pictures(name, spec)
    _require_bytes(name, spec)
    if cell > min(height, width):
        raise ConfigError(f"cell: {cell} is larger than the screen of {height}x{width}")
    return frames, height // cell, width // cell


def _require_bytes(name: str, spec: PolicySpec) -> None:
    if spec.obs_dtype != "uint8":
        raise ConfigError(f"{name} takes pixels of bytes; these are {spec.obs_dtype}")


def _require_sizes(cell: int, colours: int, threshold: int) -> None:
    require_positive("cell, colours, threshold", [cell, colours, threshold])
    if colours > 64 or threshold > 255:
        raise ConfigError(f"colours, threshold: expected at most 64 and 255, found {colours} and {threshold}")
