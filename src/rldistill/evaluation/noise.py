"""Observations seen through noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.heads import MASK
from rldistill.core.policy import ObsTransformPolicy, Policy
from rldistill.core.spec import PolicySpec
from rldistill.envs.config import EnvConfig, Side
from rldistill.evaluation.episodes import play

MOST_SEEN = 2_000
"""Observations that their deviation is taken over."""


def noisy(policy: Policy, scale: Tensor, generator: torch.Generator) -> ObsTransformPolicy:
    """A policy that sees every observation through noise: another draw each time that it looks.

    `scale` is the standard deviation of each number, `[*obs_shape]` or one for all of them. Pixels stay between 0 and
    255.
    """
    low, high = (torch.from_numpy(end) for end in _pixel_bounds(policy.spec))

    def look(obs: Tensor) -> Tensor:
        noise = (torch.randn(obs.shape, generator=generator) * scale).to(obs.device)
        if obs.dtype == torch.uint8:
            return (obs + noise).round_().clamp_(0, 255).to(torch.uint8)
        return torch.minimum(torch.maximum(obs + noise.to(obs.dtype), low.to(obs.device)), high.to(obs.device))

    return ObsTransformPolicy(policy, look)


def _pixel_bounds(spec: PolicySpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Between which the numbers of an observation stay: pixels within a dict, that is."""
    pixels = np.concatenate([np.full(math.prod(part.shape), part.dtype == "uint8") for part in spec.entries.values()])
    low, high = np.where(pixels, 0, -np.inf), np.where(pixels, 255, np.inf)
    return low.reshape(spec.obs_shape).astype(np.float32), high.reshape(spec.obs_shape).astype(np.float32)


def noise_scale(spec: PolicySpec, deviation: NDArray[np.floating[Any]], noise: float, pixel_noise: float) -> Tensor:
    """Standard deviations of the noise, `[*obs_shape]`, a share of each number's own and of 255 for pixels.

    There is none on integers that name something, and none on a mask.
    """
    scales, at = [], 0
    for key, part in spec.entries.items():
        size = math.prod(part.shape)
        scale: NDArray[np.floating[Any]] = np.zeros(size)
        if part.dtype == "uint8":
            scale[:] = pixel_noise * 255
        elif np.dtype(part.dtype).kind == "f" and key != MASK:
            scale = noise * deviation.ravel()[at : at + size]
        scales.append(scale)
        at += size
    return torch.from_numpy(np.concatenate(scales).reshape(spec.obs_shape)).float()


def deviation_of(env: EnvConfig, policy: Policy, side: Side, seed: int) -> NDArray[np.float64]:
    """Of each number that a policy sees while it plays a few episodes, `[*obs_shape]`; of pixels 0."""
    if policy.spec.obs_dtype == "uint8":
        return np.zeros(policy.spec.obs_shape)  # pixels have a scale of their own
    seen: list[Tensor] = []

    def look(obs: Tensor) -> Tensor:
        if sum(map(len, seen)) < MOST_SEEN:
            seen.append(obs.cpu().clone())
        return obs

    play(env, ObsTransformPolicy(policy, look), 4, seed=seed, split=2, side=side)
    deviation: NDArray[np.float64] = torch.cat(seen).double().numpy().std(0)
    return deviation
