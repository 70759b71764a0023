"""Objects on the screen of a game as features: positions, speeds and future meetings."""

import itertools
from typing import Annotated

import torch
from annotated_types import Ge, Le, MinLen
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.fields import NonNegative, validated_dataclass
from rldistill.core.spec import PolicySpec
from rldistill.policies.layers import require_images
from rldistill.students.features.features import Features

BACKGROUND_STRIDE = 16
"""Share of the pixels that is sorted for the first guess of the background."""

Region = tuple[str, NonNegative, NonNegative, NonNegative, NonNegative]
"""Name, top, bottom (excluded), left and right (excluded), in pixels."""


@validated_dataclass
class Objects(Features):
    """Position, speed and size of the object in each region of the screen, and its meetings with the others.

    The object of a region are the pixels that differ from the background, which is the most frequent value of the
    region in each frame. Its position is the mean row and column of these pixels, weighted with their differences from
    the background, which resolves fractions of a pixel. Then follow its movement between frames, the number of its
    pixels, and the distances between each two objects in rows and in columns.

    A meeting extrapolates the last movement, with the edges of the region as walls that reflect. For each ordered pair
    of objects the features are 1 / (1 + frames until the first is in the column of the second), and the difference of
    their rows at that time; likewise with rows and columns swapped. A feature is 0 where a region is empty or the
    objects do not approach each other.

    Attributes:
        regions: Regions by name: top, bottom (excluded), left, right (excluded), in pixels.
        threshold: Least difference of a pixel from the background, of 255.
    """

    regions: Annotated[tuple[Region, ...], MinLen(1)]
    threshold: Annotated[int, Ge(1), Le(255)] = 16

    normalizes_itself = True
    standardized_for_weights = True

    def __post_init__(self) -> None:
        for name, top, bottom, left, right in self.regions:
            if not (top < bottom and left < right):
                raise ConfigError(
                    f"regions: {name}: expected top < bottom and left < right, found {top}, {bottom}, {left}, {right}"
                )

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the layers and the number of features."""
        frames, height, width = require_images("objects", spec)
        if spec.obs_dtype != "uint8":
            raise ConfigError(f"objects takes pixels of bytes; these are {spec.obs_dtype}")
        for name, _, bottom, _, right in self.regions:
            if bottom > height or right > width:
                raise ConfigError(f"regions: {name} is beyond the screen of {height}x{width}")
        return nn.Sequential(ObjectLayer(self.regions, self.threshold, frames)), len(self.names(frames))

    def names(self, frames: int) -> list[str]:
        """Return the names of the features in their order, for observations of `frames` frames."""
        regions = [name for name, *_ in self.regions]
        moved = [" moved", *(f" moved {ago} before" for ago in range(1, frames - 1))][: frames - 1]
        names = [f"{name} {axis}{suffix}" for name in regions for suffix in ("", *moved) for axis in ("row", "column")]
        names += [f"{name} size" for name in regions]
        distances = itertools.product(itertools.combinations(regions, 2), ("row", "column"))
        names += [f"{a} {axis} - {b} {axis}" for (a, b), axis in distances]
        ways = [("column", "row"), ("row", "column")] if frames > 1 else []
        for (a, b), (along, across) in itertools.product(itertools.permutations(regions, 2), ways):
            names += [f"{a} soon in {b} {along}", f"{a} {across} - {b} {across} when in {b} {along}"]
        return names


class ObjectLayer(nn.Module):
    """Layer that computes `Objects` from frames `[B, T, H, W]`."""

    def __init__(self, regions: tuple[Region, ...], threshold: int, frames: int) -> None:
        super().__init__()
        self.regions, self.threshold, self.frames = regions, threshold, frames

    def forward(self, obs: Tensor) -> Tensor:
        """Return the features `[B, N]`."""
        position, size = self._positions(obs)
        present = size > 0
        speed = (position[:, :, 1:] - position[:, :, :-1]) * (present[:, :, 1:] & present[:, :, :-1])[..., None]
        own = torch.cat([position[:, :, -1:], speed.flip(2)], 2)  # [B, regions, T, 2]
        position, present = position[:, :, -1], present[:, :, -1]
        walls = [((top, bottom - 1), (left, right - 1)) for _, top, bottom, left, right in self.regions]
        pairs = itertools.combinations(range(len(walls)), 2)
        distances = [(position[:, a] - position[:, b]) * (present[:, a] & present[:, b])[:, None] for a, b in pairs]
        meetings: list[Tensor] = []
        if self.frames > 1:
            for (a, b), along in itertools.product(itertools.permutations(range(len(walls)), 2), (1, 0)):
                across = walls[a][1 - along]
                soon, offset = _meeting(position[:, a], speed[:, a, -1], position[:, b], along, across)
                both = present[:, a] & present[:, b]
                meetings.append(torch.stack([soon * both, offset * both], 1))
        return torch.cat([own.flatten(1), size[:, :, -1], *distances, *meetings], 1)

    def _positions(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return row and column of the object in each region, `[B, regions, T, 2]`, and its number of pixels."""
        positions, sizes = [], []
        for _, top, bottom, left, right in self.regions:
            pixels = obs[:, :, top:bottom, left:right].flatten(0, 1).flatten(1)
            # The median of some pixels is the most frequent value wherever more than half of the frame has it; only
            # other frames are sorted.
            background = pixels[:, ::BACKGROUND_STRIDE].median(1).values
            uncertain = 2 * (pixels == background[:, None]).count_nonzero(1) <= pixels.shape[1]
            if uncertain.any():
                background[uncertain] = pixels[uncertain].mode(1).values
            frame, pixel = (pixels != background[:, None]).nonzero(as_tuple=True)
            difference = (pixels[frame, pixel].float() - background[frame].float()).abs()
            difference *= difference > self.threshold
            row, column = top + pixel // (right - left), left + pixel % (right - left)
            sums = torch.zeros(len(pixels), 4, device=obs.device)
            terms = [difference * row, difference * column, difference, difference > 0]
            sums.index_add_(0, frame, torch.stack(terms, 1))
            positions.append((sums[:, :2] / sums[:, 2:3].clamp_min(1)).view(len(obs), self.frames, 2))
            sizes.append(sums[:, 3].view(len(obs), self.frames))
        return torch.stack(positions, 1), torch.stack(sizes, 1)


def _meeting(
    position: Tensor, speed: Tensor, target: Tensor, along: int, walls: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return 1 / (1 + frames) until an object is level with its target along an axis, and their distance across it.

    Positions and movements in a frame are rows and columns, `[B, 2]`; `walls` limit the object's position across.
    """
    across, (low, high) = 1 - along, walls
    distance = target[:, along] - position[:, along]
    approaches = distance * speed[:, along] > 0
    frames = torch.where(approaches, distance / torch.where(approaches, speed[:, along], 1.0), 0.0)
    approaches |= distance == 0  # level already
    # Unfolded, the walls are mirrors: every second image of the region is reversed.
    period = 2 * max(high - low, 1)
    offset = (position[:, across] + frames * speed[:, across] - low).remainder(period)
    arrival = low + torch.minimum(offset, period - offset)
    return approaches / (1 + frames), (arrival - target[:, across]) * approaches
