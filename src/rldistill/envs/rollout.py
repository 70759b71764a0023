"""The loop that steps a batch of environments with a policy, shared by collection, evaluation and rl."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import SpecMismatchError
from rldistill.envs.vector import SeededVectorEnv, Step

T = TypeVar("T")


def rollout(
    env: SeededVectorEnv, obs: NDArray[Any], act: Callable[[NDArray[Any]], NDArray[Any]]
) -> Iterator[tuple[NDArray[Any], Step] | None]:
    """Step `env` without end, starting from the observations `obs` of its slots.

    Yields:
        None while a step is in progress, so that the caller can do something else, then the actions and their results.
    """
    while True:
        action = act(obs)
        env.send(action)
        yield None
        step = env.recv()
        if not np.isfinite(step.reward).all():
            raise SpecMismatchError("env: a reward is NaN or infinite. Check the reward of the environment.")
        yield action, step
        obs = step.obs


def take_turns(rollouts: Iterable[Iterator[T | None]]) -> Iterator[T]:
    """Yield the items of all iterators, two of which run in turns: None passes the turn to the other.

    While the emulators of one iterator step, the policy of the other computes.
    """
    waiting = iter(rollouts)
    running = deque(islice(waiting, 2))
    while running:
        current = running.popleft()
        for item in current:
            if item is None:
                running.append(current)
                break
            yield item
        else:
            running.extend(islice(waiting, 1))
