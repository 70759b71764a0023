"""Policies that act: with the recurrent state of their episodes, and on observations as an environment has them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rldistill.core.entries import find_entry, join_parts, named_values
from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import CPU, Policy, PolicyOutput, PolicyWrapper
from rldistill.core.spec import ObsPart


class StatefulPolicy:
    """Policy with the recurrent state of every slot; None for a feed-forward policy. Computes no gradients.

    The networks of the policy are on `device`; observations, outputs and the state are on the CPU.
    """

    def __init__(self, policy: Policy, num_slots: int, state: Tensor | None = None, device: torch.device = CPU) -> None:
        self.policy, self.device = policy, device
        self.state = self._initial_state(num_slots) if state is None else state

    def step(self, obs: NDArray[Any], rows: NDArray[np.int64] | None = None) -> PolicyOutput:
        """Return the output for the slots' observations and keep the new state.

        The outputs of slots that are not in `rows` are not used, so that a row-wise policy is not called for them.
        """
        if rows is not None and len(rows) < len(obs) and is_row_wise(self.policy):
            return self._for_rows(obs, rows)
        output, self.state = self._forward(obs)
        return output

    def evaluate(self, obs: NDArray[Any], rows: NDArray[np.int64] | None = None) -> PolicyOutput:
        """Return the output as `step` does, and leave the state unchanged."""
        if rows is not None and len(rows) < len(obs) and is_row_wise(self.policy):
            return self._for_rows(obs, rows)
        return self._forward(obs)[0]

    def _for_rows(self, obs: NDArray[Any], rows: NDArray[np.int64]) -> PolicyOutput:
        """Return the output of a row-wise policy for some slots, and zeros for the others."""
        head, count, index = self.policy.spec.head, len(obs), torch.from_numpy(rows)
        if not len(rows):
            return PolicyOutput(head, torch.zeros(count, head.num_params))
        output, _ = self._forward(obs[rows])
        return output.map(lambda part: part.new_zeros(count, *part.shape[1:]).index_copy(0, index, part))

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
        # A copy, since code of the user's may change it in place, and it is recorded after the labels.
        batch = torch.from_numpy(np.array(obs, order="C"))
        with torch.no_grad():
            if self.device == CPU:  # moves to where tensors already are cost 3% of a small network
                return self.policy(batch, self.state)
            output, after = self.policy(
                batch.to(self.device), None if self.state is None else self.state.to(self.device)
            )
        return output.to(CPU), None if after is None else after.cpu()


def is_row_wise(policy: Policy) -> bool:
    """Return True if a policy has one call for each observation of a batch, whose output no other one changes."""
    while isinstance(policy, PolicyWrapper):
        policy = policy.policy
    return bool(getattr(policy, "row_wise", False))


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


class Agent:
    """Policy with the recurrent state of the current episodes.

    It takes arrays, lists, integers and dicts of these, as Gymnasium's environments return them, and returns the most
    likely actions. A mask of legal actions is the entry `action_mask` of a dict. Discrete actions count from 0, and
    several numbers are one vector: add the `start` of a space that has one, and reshape to a shape of several axes.

    Example:
        >>> agent = Agent(load_policy("runs/cartpole/students/mlp/seed-0"))
        >>> obs, _ = env.reset()
        >>> obs, *_ = env.step(agent.act(obs))
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._stateful: StatefulPolicy | None = None

    def reset(self, done: Any = None) -> None:
        """Start a new episode: in the whole batch, or where `done` is True, `[B]`."""
        if done is None:
            self._stateful = None
        elif self._stateful is not None:
            self._stateful.reset(np.flatnonzero(done))

    def act(self, obs: Any) -> Any:
        """Return the action for one observation: an integer, or `[A]`; raise SpecMismatchError if it does not fit."""
        action = self._actions(obs, batched=False)[0]
        return action if action.shape else action.item()

    def act_batch(self, obs: Any) -> NDArray[Any]:
        """Return the actions for a batch of observations: integers `[B]`, or an array `[B, A]`; see `act`."""
        return self._actions(obs, batched=True)

    def _actions(self, obs: Any, batched: bool) -> NDArray[Any]:
        batch = self._batch(obs, batched)
        if self._stateful is None:
            tensor = next(self.policy.parameters(), None) if isinstance(self.policy, nn.Module) else None
            self._stateful = StatefulPolicy(self.policy, len(batch), device=CPU if tensor is None else tensor.device)
        state = self._stateful.state
        if state is not None and len(state) != len(batch):
            raise SpecMismatchError(
                f"act: the agent has the state of {len(state)} episodes, found {len(batch)} observations. "
                "Call reset() before another batch size."
            )
        return to_env_action(self._stateful.step(batch).mode())

    def _batch(self, obs: Any, batched: bool) -> NDArray[Any]:
        """Return observations `[B, *obs_shape]`, in which the entries of a dict follow one another."""
        spec = self.policy.spec
        if not spec.parts:
            return _array(obs, spec.entries[""], "the observation", batched)
        if not isinstance(obs, Mapping | tuple):
            return _array(obs, ObsPart(spec.obs_shape, spec.obs_dtype), "the observation", batched)
        try:
            entries = {
                key: _array(find_entry(obs, key), part, f"the entry {key!r}", batched) for key, part in spec.parts
            }
        except KeyError as error:
            known = ", ".join(named_values(obs))
            raise SpecMismatchError(f"act: the observation has no entry {error}, only {known}") from None
        return join_parts(entries, spec.parts, spec.obs_dtype)


def _array(obs: Any, part: ObsPart, name: str, batched: bool) -> NDArray[Any]:
    """Return `obs` as an array `[B, *shape]` in the dtype of its spec."""
    try:
        array = np.asarray(obs)
        # Floats in the place of bytes or integers were scaled or normalized, and would silently become zeros.
        converted = array.astype(part.dtype, casting="same_kind" if array.dtype.kind == "f" else "unsafe")
    except (TypeError, ValueError):
        raise SpecMismatchError(f"act: {name} has to be {part.dtype} numbers of shape {part.shape}") from None
    converted = np.ascontiguousarray(converted if batched else converted[None])
    if converted.shape[1:] != part.shape or not converted.ndim:
        expected = f"{'[B, ...] of ' if batched else ''}{part.shape}"
        raise SpecMismatchError(f"act: {name} has shape {array.shape}, expected {expected}")
    rows = converted.reshape(len(converted), -1)
    if part.nvec and ((rows < 0) | (rows >= part.nvec)).any():
        raise SpecMismatchError(
            f"act: {name} has integers beyond its space, which has {', '.join(map(str, part.nvec))}"
        )
    return converted
