"""What a policy costs: parameters, bytes, multiply-adds, latency."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rldistill.masking import Masked
from rldistill.rollouts import inference_threads
from rldistill.teachers.ensemble import Ensemble
from rldistill.types import Policy

WARM_UP, TIMED = 20, 200


@dataclass(frozen=True)
class Cost:
    """What one policy takes to store and to run.

    Attributes:
        parameters: how many numbers were learned; None where some of the policy is no network of PyTorch's.
        bytes: of those numbers, as they are in memory; None likewise.
        macs: multiply-adds of matrix products and convolutions for one observation; None likewise.
        latency_us: p50 and p99 of one call with one observation on one thread, in microseconds; None for no policy.
    """

    parameters: int | None
    bytes: int | None
    macs: int | None
    latency_us: dict[str, float] | None


def measure_cost(policy: Policy | None) -> Cost:
    """Measure a policy; None (the random one) costs nothing, and of what is no network only the latency is known.

    An ensemble costs what its members do together; a policy that is confined to legal actions, what it costs itself.
    """
    if policy is None:
        return Cost(0, 0, 0, None)
    spec = policy.spec
    obs = torch.zeros((1, *spec.obs_shape), dtype=getattr(torch, spec.obs_dtype))
    parts = _parts(policy)
    networks = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])
    with torch.no_grad(), inference_threads(1):
        if len(networks) < len(parts):
            return Cost(None, None, None, _latency(policy, obs))
        parameters = [parameter for parameter in networks.parameters() if parameter.requires_grad]
        return Cost(
            sum(parameter.numel() for parameter in parameters),
            sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            _macs(policy, networks, obs),
            _latency(policy, obs),
        )


def _parts(policy: Policy) -> list[Policy]:
    """The policies that a policy is put together of."""
    if isinstance(policy, Masked):
        return _parts(policy.policy)
    if isinstance(policy, Ensemble):
        return [part for member in policy.members for part in _parts(member)]
    return [policy]


def _macs(policy: Policy, networks: nn.ModuleList, obs: Tensor) -> int:
    recurrent = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        nonlocal recurrent  # PyTorch's counter takes an LSTM for one operation, of which it does not know the cost
        steps = inputs[0].numel() // inputs[0].shape[-1]
        recurrent += steps * sum(p.numel() for name, p in module.named_parameters() if name.startswith("weight"))

    hooks = [m.register_forward_hook(count) for m in networks.modules() if isinstance(m, nn.RNNBase)]
    try:
        with FlopCounterMode(display=False) as counter:
            policy(obs)
    finally:
        for hook in hooks:
            hook.remove()
    return int(counter.get_total_flops()) // 2 + recurrent


def _latency(policy: Policy, obs: Tensor) -> dict[str, float]:
    times = []
    for _ in range(WARM_UP + TIMED):
        started = time.perf_counter()
        policy(obs)
        times.append((time.perf_counter() - started) * 1e6)
    p50, p99 = np.percentile(times[WARM_UP:], [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
