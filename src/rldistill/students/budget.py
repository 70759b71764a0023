"""Largest student of a family within a budget."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.core.spec import PolicySpec
from rldistill.students.cnn import Cnn, Impala
from rldistill.students.mlp import Mlp
from rldistill.students.multi_input import MultiInput

Family = Literal["mlp", "cnn", "impala", "multi_input"]
AnyFamily = Mlp | Cnn | Impala | MultiInput
STEPS_PER_DOUBLING = 16
MAX_WIDTH = 1 << 12


def fit_budget(
    spec: PolicySpec,
    family: Family = "cnn",
    *,
    parameters: int | None = None,
    bytes: int | None = None,
    macs: int | None = None,
) -> AnyFamily:
    """Return the widest student of a family within all given limits.

    All widths of the family's default shape are scaled by the same factor, to at least 1. The limits are the number of
    parameters, their memory of four bytes each, and the multiply-adds for one observation.

    Raises:
        ConfigError: No limit is given, or no shape of the family is within it.
    """
    limits = {"parameters": parameters, "bytes": bytes, "macs": macs}
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if not given:
        raise ConfigError(f"fit_budget: give a limit: {', '.join(limits)}")
    if family not in SHAPES:
        raise ConfigError(f"fit_budget: there is no family {family!r}.{did_you_mean(str(family), SHAPES)}")
    best: AnyFamily | None = None
    steps = range(-12 * STEPS_PER_DOUBLING, 12 * STEPS_PER_DOUBLING)
    for student in dict.fromkeys(SHAPES[family](2.0 ** (step / STEPS_PER_DOUBLING)) for step in steps):
        cost = costs(student, spec)
        if any(cost[name] > limit for name, limit in given.items()):
            break
        best = student
    if best is None:
        smallest = costs(SHAPES[family](0.0), spec)
        least = ", ".join(f"{name} {smallest[name]:,}" for name in given)
        raise ConfigError(f"fit_budget: no {family} is that small, the smallest has {least}. Raise the limit.")
    return best


def costs(student: AnyFamily, spec: PolicySpec) -> dict[str, int]:
    """Return parameters, bytes and multiply-adds of a student, without memory for its weights."""
    with torch.device("meta"):
        policy: nn.Module = student.build(spec)
        obs = torch.zeros((1, *spec.obs_shape), dtype=getattr(torch, spec.obs_dtype))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy(obs)
    count = sum(parameter.numel() for parameter in policy.parameters())
    return {"parameters": count, "bytes": 4 * count, "macs": int(counter.get_total_flops()) // 2}


def _scaled(widths: tuple[int, ...], factor: float) -> tuple[int, ...]:
    return tuple(max(1, min(MAX_WIDTH, round(width * factor))) for width in widths)


SHAPES: dict[str, Callable[[float], AnyFamily]] = {
    "mlp": lambda factor: Mlp(_scaled((64, 64), factor)),
    "cnn": lambda factor: Cnn(_scaled((16, 32, 32), factor), (8, 4, 3), (4, 2, 1), _scaled((64,), factor)),
    "impala": lambda factor: Impala(_scaled((16, 32, 32), factor), _scaled((256,), factor)),
    "multi_input": lambda factor: MultiInput(
        _scaled((16, 32, 32), factor), (8, 4, 3), (4, 2, 1), _scaled((64,), factor)[0], _scaled((64,), factor)
    ),
}
