"""Measure the time of the teacher's labels in the collector relative to a plain batched forward pass.

Every other time that the collector asks the teacher, the network is called alone instead, on the same observations and
in the same state of the machine's caches; both are measured in the thread's own time, as the emulators run beside it.
The collector asks for every observation, and once more for the last ones of episodes and streams.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rldistill import CollectConfig, EnvConfig, Policy, collect, load_policy
from rldistill.core.policy import on_device, resolve_device
from rldistill.envs.spaces import spec_from_env
from rldistill.policies.agent import StatefulPolicy, inference_threads
from rldistill.students import Mlp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="print labels a second on this device instead")
    asked = parser.parse_args()
    if asked.device is not None:
        device = resolve_device(asked.device, "--device")
        measure_throughput("Pong", load_policy("zoo:pong-dqn"), device, asked.turns)
        measure_throughput("CartPole", balancing(EnvConfig("CartPole-v1")), device, asked.turns)
        return
    cartpole = EnvConfig("CartPole-v1")
    measure("Pong", EnvConfig("ALE/Pong-v5"), load_policy("zoo:pong-dqn"), 4_800, asked.turns)
    measure("CartPole", cartpole, balancing(cartpole), 48_000, asked.turns)


def measure(name: str, env: EnvConfig, teacher: Policy, steps: int, turns: int) -> None:
    """Print the median ratio over several turns, each of which measures both."""
    config = CollectConfig(steps=steps, epsilon=0.01)
    calls = steps // config.envs_per_stream
    ratios, asked, bare = [], [], []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            ask, alone = while_collecting(partial(collect, env, teacher, config, Path(folder) / "dataset"))
        asked.append(float(np.median(ask)))
        bare.append(float(np.median(alone)))
        ratios.append(asked[-1] / bare[-1] * (len(ask) + len(alone)) / calls)
    print(
        f"{name}: asking {1e6 * np.median(asked):,.0f} us for {config.envs_per_stream} labels, bare forward "
        f"{1e6 * np.median(bare):,.0f} us, ratio with all that is asked {np.median(ratios):.2f}"
    )


def measure_throughput(name: str, teacher: Policy, device: torch.device, turns: int) -> None:
    """Print the labels a second by batches of several sizes, with the copies to the device and back."""
    rates = []
    for size in (8, 64, 512):
        obs = np.zeros((size, *teacher.spec.obs_shape), teacher.spec.obs_dtype)
        with inference_threads(1), on_device(device, teacher):
            ask = StatefulPolicy(teacher, size, None, device)
            ask.step(obs)
            best, calls = 0.0, max(1, 4_096 // size)
            for _ in range(turns):
                started = time.perf_counter()
                for _ in range(calls):
                    ask.step(obs)
                best = max(best, calls * size / (time.perf_counter() - started))
        rates.append(f"{best:,.0f} in batches of {size}")
    print(f"{name} on {device}, labels a second: {', '.join(rates)}")


def while_collecting(work: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Return the seconds of each labeling call and of each plain network call."""
    spent: tuple[list[float], list[float]] = ([], [])
    ask = StatefulPolicy._forward

    def timed(self: StatefulPolicy, obs: Any) -> Any:
        turn = len(spent[0]) > len(spent[1])
        started = time.thread_time()
        if turn:
            with torch.no_grad():
                said = self.policy(torch.from_numpy(obs), self.state)
        else:
            said = ask(self, obs)
        spent[turn].append(time.thread_time() - started)
        return said

    StatefulPolicy._forward = timed  # type: ignore[method-assign]
    try:
        work()
    finally:
        StatefulPolicy._forward = ask  # type: ignore[method-assign]
    return spent


def balancing(env: EnvConfig) -> Policy:
    """Return a network of classic size that balances the pole, so that episodes are as long as a teacher's."""
    policy = Mlp((64, 64)).build(spec_from_env(env)).eval()
    first, second, last = policy.body[1], policy.body[3], policy.output
    with torch.no_grad():
        for layer in (first, second, last):
            layer.weight.zero_(), layer.bias.zero_()
        first.weight[0] = torch.tensor([0.1, 0.5, 1.0, 1.0])
        first.weight[1] = -first.weight[0]
        second.weight[0, 0] = second.weight[1, 1] = last.weight[1, 0] = last.weight[0, 1] = 1.0
    return policy


if __name__ == "__main__":
    main()
