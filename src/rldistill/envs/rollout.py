"""The loop that steps a batch of environments with a policy, shared by collection, evaluation and rl."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.device import CPU
from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import Policy, PolicyOutput
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


class StatefulPolicy:
    """Policy with the recurrent state of every slot; None for a feed-forward policy. Computes no gradients.

    The networks of the policy are on `device`; observations, outputs and the state are on the CPU.
    """

    def __init__(self, policy: Policy, num_slots: int, state: Tensor | None = None, device: torch.device = CPU) -> None:
        self.policy, self.device = policy, device
        self.state = self._initial_state(num_slots) if state is None else state

    def step(self, obs: NDArray[Any]) -> PolicyOutput:
        """Return the output for the slots' observations and keep the new state."""
        output, self.state = self._forward(obs)
        return output

    def evaluate(self, obs: NDArray[Any]) -> PolicyOutput:
        """Return the output for the slots' observations and leave the state unchanged."""
        return self._forward(obs)[0]

    def reset(self, ended: NDArray[np.int64]) -> None:
        """Restore the initial state of the slots whose episode has ended."""
        if self.state is not None and len(ended):
            initial = self._initial_state(len(ended))
            assert initial is not None
            self.state = self.state.index_copy(0, torch.from_numpy(ended), initial)

    def _initial_state(self, count: int) -> Tensor | None:
        state = self.policy.initial_state(count)
        return None if state is None else state.cpu()

    def _forward(self, obs: NDArray[Any]) -> tuple[PolicyOutput, Tensor | None]:
        batch = torch.from_numpy(np.ascontiguousarray(obs))
        with torch.no_grad():
            if self.device == CPU:  # moves to where tensors already are cost 3% of a small network
                return self.policy(batch, self.state)
            output, after = self.policy(
                batch.to(self.device), None if self.state is None else self.state.to(self.device)
            )
        return output.to(CPU), None if after is None else after.cpu()


def to_env_action(action: Tensor) -> NDArray[Any]:
    """Return a policy's action for an environment; raise SpecMismatchError for NaN and infinite numbers."""
    array: NDArray[Any] = action.numpy()
    if array.dtype == np.int64:
        return array
    if not np.isfinite(array).all():
        raise SpecMismatchError(
            "policy: its actions are NaN or infinite. Check its weights and the scale of its observations."
        )
    return array.astype(np.float32)


@contextmanager
def inference_threads(count: int) -> Iterator[None]:
    """Use `count` threads of PyTorch within the block; results depend on this number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
