"""The one loop that steps a batch of environments with a policy; collect and evaluate are built on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.envs.vector import SeededVectorEnv, Step
from rldistill.types import Policy, PolicyOutput


@dataclass(frozen=True)
class Transition:
    """One step of all slots: what was seen, what was done, what came of it."""

    obs: NDArray[Any]
    action: NDArray[Any]
    step: Step


def rollout(
    env: SeededVectorEnv, obs: NDArray[Any], act: Callable[[NDArray[Any]], NDArray[Any]]
) -> Iterator[Transition | None]:
    """Step `env` for ever, from where its slots show `obs`.

    Yields None when a step has begun, while there is time for something else, and the transition when it is done.
    """
    while True:
        action = act(obs)
        env.send(action)
        yield None
        step = env.recv()
        yield Transition(obs, action, step)
        obs = step.obs


def predict(policy: Policy, obs: NDArray[Any]) -> PolicyOutput:
    """What `policy` says of a batch of observations, without gradients."""
    with torch.no_grad():
        output, _ = policy(torch.from_numpy(np.ascontiguousarray(obs)))
    return output


def to_env_action(action: torch.Tensor) -> NDArray[Any]:
    """A policy's action as an environment takes it."""
    array: NDArray[Any] = action.numpy()
    return array if array.dtype == np.int64 else array.astype(np.float32)


@contextmanager
def inference_threads(count: int) -> Iterator[None]:
    """Use `count` threads within; results depend on the number, so that it is part of what is promised."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
