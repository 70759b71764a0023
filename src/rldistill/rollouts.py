"""The one loop that steps a batch of environments with a policy; collect and evaluate are built on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.envs.vector import SeededVectorEnv, Step
from rldistill.types import Policy, PolicyOutput

T = TypeVar("T")


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


def take_turns(rollouts: Iterable[Iterator[T | None]]) -> Iterator[T]:
    """All that the iterators yield but None, which passes the turn on; two of them are begun at a time.

    While the emulators of one are at work, the policy looks at what the other shows.
    """
    ahead = iter(rollouts)
    begun = deque(islice(ahead, 2))
    while begun:
        current = begun.popleft()
        for item in current:
            if item is None:
                begun.append(current)
                break
            yield item
        else:
            begun.extend(islice(ahead, 1))


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
