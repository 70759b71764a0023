"""Cost of a policy: parameters, bytes, multiply-adds, activations, latency."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from rldistill.core.errors import UntrustedFileError
from rldistill.core.policy import Policy
from rldistill.policies.agent import inference_threads
from rldistill.policies.ensemble import Ensemble
from rldistill.policies.joint import JointPolicy
from rldistill.policies.wrappers import ActionMaskedPolicy

WARM_UP_CALLS, TIMED_CALLS = 20, 200
BATCH_SIZES = (64, 256)
PRODUCTS = tuple(getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm", "convolution"))
POOL_COST = 256
"""Operations of matrix products that take as long as one comparison of a pooling."""

TIMING_S, BATCH_TIMING_S, MIN_CALLS = 2.0, 0.25, 10
"""Limits of the time for calls with one observation and with a batch, and the least number of calls."""
MAX_BATCH_US = 1e6
"""Limit of a batch for a policy that is no network and may take its observations one by one, such as a controller."""


@dataclass(frozen=True)
class Cost:
    """Memory and time of one policy; only the latency of a policy that is not made of PyTorch networks.

    Attributes:
        parameters: Number of trained parameters.
        bytes: Memory of these parameters.
        macs: Multiply-adds of matrix products and convolutions for one observation.
        latency_us: p50 and p99 of one call with one observation on one thread, in microseconds.
        activations: Number of outputs of these products and convolutions (Dollar 2021, arXiv 2103.06877).
        batch_latency_us: Latency of one call with a batch, by its size ("64", "256"); none for slow functions.
    """

    parameters: int | None
    bytes: int | None
    macs: int | None
    latency_us: dict[str, float] | None
    activations: int | None = None
    batch_latency_us: dict[str, dict[str, float]] | None = None


def measure_cost(policy: Policy | None, obs: Tensor | None = None) -> Cost:
    """Measure a policy; None (the random one) costs nothing, and an ensemble the sum of its members.

    `obs` is an observation of the environment, `[1, ...]`; zeros if None. The latency of planners and other functions
    depends on it.
    """
    if policy is None:
        return Cost(0, 0, 0, None, 0)
    spec = policy.spec
    one = torch.zeros((1, *spec.obs_shape), dtype=getattr(torch, spec.obs_dtype)) if obs is None else obs
    batches = {size: one.repeat(size, *[1] * (one.ndim - 1)) for size in BATCH_SIZES}
    parts = _parts(policy)
    networks = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])
    with torch.no_grad(), inference_threads(1):
        only_networks = len(networks) == len(parts)
        macs, activations = _products(policy, networks, one) if only_networks else (None, None)
        trained = [parameter for parameter in networks.parameters() if parameter.requires_grad]
        count = sum(parameter.numel() for parameter in trained) if only_networks else None
        num_bytes = sum(parameter.nbytes for parameter in trained) if only_networks else None
        latency = measure_latency(partial(policy, one), WARM_UP_CALLS, TIMED_CALLS, TIMING_S)
        sizes = [size for size in BATCH_SIZES if only_networks or latency["p50"] * size < MAX_BATCH_US]
        batch_latency = {
            str(size): measure_latency(partial(policy, batches[size]), 2, TIMED_CALLS, BATCH_TIMING_S) for size in sizes
        }
        return Cost(count, num_bytes, macs, latency, activations, batch_latency)


def _parts(policy: Policy) -> list[Policy]:
    """Return the policies inside wrappers, ensembles and joint policies."""
    if isinstance(policy, ActionMaskedPolicy):
        return _parts(policy.policy)
    if isinstance(policy, Ensemble | JointPolicy):
        return [part for member in policy.members for part in _parts(member)]
    return [policy]


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the multiply-adds and the outputs of matrix products and convolutions.

    FlopCounterMode counts for each module, too, and for that imports PyTorch's compiler, which takes a second.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # if True, as by default, PyTorch imports its compiler
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = self.outputs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.macs += count(*args, **(kwargs or {}), out_val=out) // 2
        if func in PRODUCTS:
            self.outputs += out.numel()
        return out


def _products(policy: Policy, networks: nn.ModuleList, obs: Tensor) -> tuple[int, int]:
    """Return the multiply-adds and the number of their outputs."""
    products = _Products()

    def count(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        # An LSTM is one operation in PyTorch, whose counter has no cost for it.
        steps = inputs[0].numel() // inputs[0].shape[-1]
        for name, weight in module.named_parameters():
            if name.startswith("weight"):
                products.macs += steps * weight.numel()
                products.outputs += steps * len(weight)

    hooks = [m.register_forward_hook(count) for m in networks.modules() if isinstance(m, nn.RNNBase)]
    try:
        with products:
            policy(obs)
    finally:
        for hook in hooks:
            hook.remove()
    return products.macs, products.outputs


def measure_latency(call: Callable[[], object], warm_up: int, count: int, seconds: float) -> dict[str, float]:
    """Return p50 and p99 of `count` calls in microseconds, or of as many as start within `seconds`."""
    for _ in range(warm_up):
        call()
    times: list[float] = []
    while len(times) < count and (sum(times) < seconds * 1e6 or len(times) < MIN_CALLS):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e6)
    return percentiles(times)


def percentiles(times: list[float]) -> dict[str, float]:
    """Return p50 and p99."""
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


class BoundedCompute(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the numbers and operations of PyTorch within it; raises UntrustedFileError if there are too many."""

    def __init__(self, path: Path | str, max_values: int, max_flops: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path, self.max_values, self.max_flops = path, max_values, max_flops
        self.values, self.flops, self.too_large = 0, 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "pool" in str(func) and len(args) > 1:  # before it runs, which takes long even without memory
            stride = args[2] if len(args) > 2 and args[2] else args[1]
            self.flops += POOL_COST * args[0].numel() * math.prod(args[1]) // max(1, math.prod(stride))
            self._require_bounded()
        found = func(*args, **(kwargs or {}))
        self.values += sum(tensor.numel() for tensor in tree_leaves(found) if isinstance(tensor, Tensor))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=found)
        self._require_bounded()
        return found

    def _require_bounded(self) -> None:
        if self.values > self.max_values or self.flops > self.max_flops:
            self.too_large = True
            raise MemoryError

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self.too_large:  # Keras wraps the errors of its layers
            raise UntrustedFileError(
                f"{self.path}: needs more than {self.max_values:,} numbers or {self.max_flops:,} operations. Use a "
                "smaller network."
            ) from None
