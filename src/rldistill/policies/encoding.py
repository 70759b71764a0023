"""Encoding of observations as network inputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from rldistill.core.spec import ObsPart, PolicySpec

if TYPE_CHECKING:
    pass


def split_parts(obs: Tensor, spec: PolicySpec) -> dict[str, Tensor]:
    """The entries of dict observations that were passed on as vectors, `[B, N]`."""
    sizes = [math.prod(part.shape) for _, part in spec.parts]
    entries = {}
    for (key, part), entry in zip(spec.parts, obs.split_with_sizes(sizes, 1), strict=True):
        whole = entry.reshape(len(obs), *part.shape)
        entries[key] = whole.to(torch.uint8) if part.dtype == "uint8" else whole
    return entries


def encoded_moments(mean: Tensor, std: Tensor, spec: PolicySpec) -> tuple[Tensor, Tensor]:
    """What to standardise with, given the moments of what comes in; one-hot vectors stay as they are."""
    if not spec.parts:
        return (torch.zeros(sum(spec.nvec)), torch.ones(sum(spec.nvec))) if spec.nvec else (mean, std)
    means, stds = [], []
    sizes = [math.prod(part.shape) for _, part in spec.parts]
    for (_, part), of_mean, of_std in zip(
        spec.parts, mean.split_with_sizes(sizes), std.split_with_sizes(sizes), strict=True
    ):
        scale = 255 if part.dtype == "uint8" else 1
        means.append(torch.zeros(part.width) if part.nvec else of_mean / scale)
        stds.append(torch.ones(part.width) if part.nvec else of_std / scale)
    return torch.cat(means), torch.cat(stds)


def moments_shape(spec: PolicySpec) -> tuple[int, ...]:
    """The shape of the moments that observations are standardised with."""
    if spec.parts or spec.nvec:
        return (flat_width(spec),)
    return () if spec.obs_dtype == "uint8" else spec.obs_shape


def flat_width(spec: PolicySpec) -> int:
    """How many numbers an observation is, encoded."""
    return sum(part.width for part in spec.entries.values())


def _encoded(obs: Tensor, part: ObsPart) -> Tensor:
    if part.nvec:
        columns = obs.long().reshape(len(obs), -1).unbind(1)
        return torch.cat([F.one_hot(x, n) for x, n in zip(columns, part.nvec, strict=True)], 1).float()
    return obs / 255 if obs.dtype == torch.uint8 else obs
