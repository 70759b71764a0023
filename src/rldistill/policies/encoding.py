"""Encoding of observations as network inputs."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rldistill.core.spec import ObsPart, PolicySpec


def encode(obs: Tensor, part: ObsPart) -> Tensor:
    """Return integers of known size as one-hot vectors and bytes as numbers from 0 to 1."""
    if part.nvec:
        columns = obs.long().reshape(len(obs), -1).unbind(1)
        return torch.cat([F.one_hot(x, n) for x, n in zip(columns, part.nvec, strict=True)], 1).float()
    return obs / 255 if obs.dtype == torch.uint8 else obs


def encoded_moments(mean: Tensor, std: Tensor, spec: PolicySpec) -> tuple[Tensor, Tensor]:
    """Convert the moments of observations to those of encoded ones; one-hot vectors are not standardized."""
    if not spec.parts:
        return (torch.zeros(sum(spec.nvec)), torch.ones(sum(spec.nvec))) if spec.nvec else (mean, std)
    means, stds = [], []
    sizes = [math.prod(part.shape) for _, part in spec.parts]
    moments = zip(mean.split_with_sizes(sizes), std.split_with_sizes(sizes), strict=True)
    for (_, part), (part_mean, part_std) in zip(spec.parts, moments, strict=True):
        scale = 255 if part.dtype == "uint8" else 1
        means.append(torch.zeros(part.width) if part.nvec else part_mean / scale)
        stds.append(torch.ones(part.width) if part.nvec else part_std / scale)
    return torch.cat(means), torch.cat(stds)


def moments_shape(spec: PolicySpec) -> tuple[int, ...]:
    """Return the shape of the moments that standardize observations."""
    if spec.parts or spec.nvec:
        return (flat_width(spec),)
    return () if spec.obs_dtype == "uint8" else spec.obs_shape


def flat_width(spec: PolicySpec) -> int:
    """Return the number of values of an encoded observation."""
    return sum(part.width for part in spec.entries.values())
