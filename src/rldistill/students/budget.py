"""The largest student of a family that a budget allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.core.spec import PolicySpec
from rldistill.students.cnn import Cnn
from rldistill.students.impala import Impala
from rldistill.students.mlp import Mlp

Family = Literal["mlp", "cnn", "impala"]
STEPS_PER_DOUBLING = 16
MOST = 1 << 12


def fit_budget(
    spec: PolicySpec,
    family: Family = "cnn",
    *,
    parameters: int | None = None,
    bytes: int | None = None,
    macs: int | None = None,
) -> Mlp | Cnn | Impala:
    """The widest student of a family whose cost stays within every limit that is given.

    All widths of the family's default shape are scaled by the same factor, at least to 1 each.

    Args:
        spec: what the student will see and say.
        family: `mlp`, `cnn` or `impala`.
        parameters: numbers that are learned.
        bytes: of those in memory, four each.
        macs: multiply-adds for one observation.

    Raises:
        ConfigError: no limit is given, or no shape of the family meets it.
    """
    limits = {"parameters": parameters, "bytes": bytes, "macs": macs}
    asked = {name: limit for name, limit in limits.items() if limit is not None}
    if not asked:
        raise ConfigError(f"fit_budget: give a limit: {', '.join(limits)}")
    if family not in SHAPES:
        raise ConfigError(f"fit_budget: there is no family {family!r}.{did_you_mean(str(family), SHAPES)}")
    best: Mlp | Cnn | Impala | None = None
    previous: Mlp | Cnn | Impala | None = None
    for step in range(-12 * STEPS_PER_DOUBLING, 12 * STEPS_PER_DOUBLING):
        student = SHAPES[family](2.0 ** (step / STEPS_PER_DOUBLING))
        if student == previous:
            continue
        previous = student
        cost = costs(student, spec)
        if any(cost[name] > limit for name, limit in asked.items()):
            break
        best = student
    if best is None:
        smallest = costs(SHAPES[family](0.0), spec)
        least = ", ".join(f"{name} {smallest[name]:,}" for name in asked)
        raise ConfigError(f"fit_budget: no {family} is that small; the smallest has {least}")
    return best


def costs(student: Mlp | Cnn | Impala, spec: PolicySpec) -> dict[str, int]:
    """Parameters, bytes and multiply-adds of a student, of which no number is ever made."""
    with torch.device("meta"):
        policy: nn.Module = student.build(spec)
        obs = torch.zeros((1, *spec.obs_shape), dtype=getattr(torch, spec.obs_dtype))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy(obs)
    count = sum(parameter.numel() for parameter in policy.parameters())
    return {"parameters": count, "bytes": 4 * count, "macs": int(counter.get_total_flops()) // 2}


def _scaled(widths: tuple[int, ...], factor: float) -> tuple[int, ...]:
    return tuple(max(1, min(MOST, round(width * factor))) for width in widths)


def _mlp(factor: float) -> Mlp:
    return dataclasses.replace(Mlp(), hidden=_scaled((64, 64), factor))


def _cnn(factor: float) -> Cnn:
    return Cnn(_scaled((16, 32, 32), factor), (8, 4, 3), (4, 2, 1), _scaled((64,), factor))


def _impala(factor: float) -> Impala:
    return Impala(_scaled((16, 32, 32), factor), _scaled((256,), factor))


SHAPES: dict[str, Callable[[float], Mlp | Cnn | Impala]] = {"mlp": _mlp, "cnn": _cnn, "impala": _impala}
