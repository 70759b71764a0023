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
from torch import Tensor

from rldistill.core.device import CPU
from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.envs.vector import SeededVectorEnv, Step

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
        if not np.isfinite(step.reward).all():
            raise SpecMismatchError("env: it gave a reward that is NaN or infinite; expected numbers")
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


class StatefulPolicy:
    """Policy with the recurrent state of every slot; None for a feed-forward policy. Computes no gradients.

    The networks of the policy are on `device`; observations, outputs and the state are on the CPU.
    """

    def __init__(self, policy: Policy, slots: int, state: Tensor | None = None, device: torch.device = CPU) -> None:
        self.policy, self.device = policy, device
        self.state = self._initial_state(slots) if state is None else state

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
        with torch.no_grad():
            before = None if self.state is None else self.state.to(self.device)
            output, after = self.policy(torch.from_numpy(np.ascontiguousarray(obs)).to(self.device), before)
        return output.to(CPU), None if after is None else after.cpu()


def to_env_action(action: torch.Tensor) -> NDArray[Any]:
    """A policy's action as an environment takes it; raises SpecMismatchError for one that is no number."""
    array: NDArray[Any] = action.numpy()
    if array.dtype == np.int64:
        return array
    if not np.isfinite(array).all():
        raise SpecMismatchError(
            "a policy's actions are NaN or infinite; look at its weights, and at the scale of its observations"
        )
    return array.astype(np.float32)


@contextmanager
def inference_threads(count: int) -> Iterator[None]:
    """Use `count` threads within; results depend on the number, so that it is part of what is promised."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
