"""What a policy costs: parameters, bytes, multiply-adds, activations, latency."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rldistill.core.policy import Policy
from rldistill.envs.rollout import inference_threads
from rldistill.policies.ensemble import Ensemble
from rldistill.policies.masking import ActionMaskedPolicy

WARM_UP, TIMED = 20, 200
BATCHES = (64, 256)
SECONDS, LEAST_CALLS = 0.25, 10
"""For which calls with a batch are timed, and how many there are at least: large networks take long over them."""


@dataclass(frozen=True)
class Cost:
    """What one policy takes to store and to run.

    Attributes:
        parameters: how many numbers were learned; None where some of the policy is no network of PyTorch's.
        bytes: of those numbers, as they are in memory; None likewise.
        macs: multiply-adds of matrix products and convolutions for one observation; None likewise.
        latency_us: p50 and p99 of one call with one observation on one thread, in microseconds; None for no policy.
        activations: numbers that these products and convolutions give for one observation, in sum over the layers, not
            at once (Dollar 2021, arXiv 2103.06877); None like `macs`.
        batch_latency_us: the same as `latency_us` of one call with a batch of observations, by the size of the batch
            ("64", "256"): microseconds for all of them together.
    """

    parameters: int | None
    bytes: int | None
    macs: int | None
    latency_us: dict[str, float] | None
    activations: int | None = None
    batch_latency_us: dict[str, dict[str, float]] | None = None


def measure_cost(policy: Policy | None) -> Cost:
    """Measure a policy; None (the random one) costs nothing, and of what is no network only the latency is known.

    An ensemble costs what its members do together; a policy that is confined to legal actions, what it costs itself.
    """
    if policy is None:
        return Cost(0, 0, 0, None, 0)
    spec = policy.spec
    shown = {size: torch.zeros((size, *spec.obs_shape), dtype=getattr(torch, spec.obs_dtype)) for size in (1, *BATCHES)}
    parts = _parts(policy)
    networks = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])
    with torch.no_grad(), inference_threads(1):
        whole = len(networks) == len(parts)
        macs, activations = _products(policy, networks, shown[1]) if whole else (None, None)
        parameters = [parameter for parameter in networks.parameters() if parameter.requires_grad]
        return Cost(
            sum(parameter.numel() for parameter in parameters) if whole else None,
            sum(parameter.numel() * parameter.element_size() for parameter in parameters) if whole else None,
            macs,
            _latency(policy, shown[1], WARM_UP),
            activations,
            {str(size): _latency(policy, shown[size], 2, SECONDS) for size in BATCHES},
        )


def _parts(policy: Policy) -> list[Policy]:
    """The policies that a policy is put together of."""
    if isinstance(policy, ActionMaskedPolicy):
        return _parts(policy.policy)
    if isinstance(policy, Ensemble):
        return [part for member in policy.members for part in _parts(member)]
    return [policy]


class _Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the numbers that matrix products and convolutions give."""

    PRODUCTS = (
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
        torch.ops.aten.convolution.default,
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self.PRODUCTS:
            self.count += out.numel()
        return out


def _products(policy: Policy, networks: nn.ModuleList, obs: Tensor) -> tuple[int, int]:
    """Multiply-adds, and the numbers that come of them."""
    recurrent = [0, 0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        # PyTorch takes an LSTM for one operation, of which its counter does not know the cost.
        steps = inputs[0].numel() // inputs[0].shape[-1]
        for name, weight in module.named_parameters():
            if name.startswith("weight"):
                recurrent[0] += steps * weight.numel()
                recurrent[1] += steps * len(weight)

    hooks = [m.register_forward_hook(count) for m in networks.modules() if isinstance(m, nn.RNNBase)]
    try:
        with FlopCounterMode(display=False) as counter, _Outputs() as outputs:
            policy(obs)
    finally:
        for hook in hooks:
            hook.remove()
    return int(counter.get_total_flops()) // 2 + recurrent[0], outputs.count + recurrent[1]


def _latency(policy: Policy, obs: Tensor, warm_up: int, seconds: float = math.inf) -> dict[str, float]:
    """Of TIMED calls, or of as many as begin within `seconds`."""
    for _ in range(warm_up):
        policy(obs)
    times: list[float] = []
    while len(times) < TIMED and (sum(times) < seconds * 1e6 or len(times) < LEAST_CALLS):
        started = time.perf_counter()
        policy(obs)
        times.append((time.perf_counter() - started) * 1e6)
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
