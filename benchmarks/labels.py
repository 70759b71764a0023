"""What the teacher's labels cost in the collector, over a bare batched forward pass for each step, in one run.

The collector's is all the time it spends asking the teacher: for every observation, and once more for what ended
episodes led to. The bare pass is the same network, on one thread, on batches of the same size and kind.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rldistill import CollectConfig, EnvConfig, Policy, collect, load_policy
from rldistill.envs.single import spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.rollouts import Memory, inference_threads
from rldistill.students import Mlp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    cartpole = EnvConfig("CartPole-v1")
    measure("Pong", EnvConfig("ALE/Pong-v5"), load_policy("zoo:pong-dqn"), 4_800, asked.turns)
    measure("CartPole", cartpole, balancing(cartpole), 48_000, asked.turns)


def measure(name: str, env: EnvConfig, teacher: Policy, steps: int, turns: int) -> None:
    """Print the median ratio over several turns, each of which measures both."""
    config = CollectConfig(steps=steps, epsilon=0.01)
    vector = make_vector_env(env, config.slots, lambda slot, nth: slot)
    batch = torch.from_numpy(vector.reset())
    vector.close()
    calls = steps // config.slots
    labels, bare = [], []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            labels.append(spent_asking(lambda: collect(env, teacher, config, Path(folder) / "dataset")) / calls)
        with inference_threads(1), torch.no_grad():
            started = time.perf_counter()
            for _ in range(calls):
                teacher(batch)
            bare.append((time.perf_counter() - started) / calls)
    ratio = float(np.median([ours / theirs for ours, theirs in zip(labels, bare, strict=True)]))
    print(
        f"{name}: labels {1e6 * float(np.median(labels)):,.0f} us a step of {config.slots}, bare forward "
        f"{1e6 * float(np.median(bare)):,.0f} us, ratio {ratio:.2f}"
    )


def spent_asking(work: Callable[[], Any]) -> float:
    """Seconds that `work` spends in the teacher."""
    spent, ask = 0.0, Memory._say

    def timed(self: Memory, obs: Any) -> Any:
        nonlocal spent
        started = time.perf_counter()
        said = ask(self, obs)
        spent += time.perf_counter() - started
        return said

    Memory._say = timed  # type: ignore[method-assign]
    try:
        work()
    finally:
        Memory._say = ask  # type: ignore[method-assign]
    return spent


def balancing(env: EnvConfig) -> Policy:
    """A classic-sized network that pushes the cart under the pole, so that episodes are as long as a teacher's."""
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
