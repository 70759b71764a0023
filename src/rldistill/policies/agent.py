"""Agent: a policy that takes observations and returns actions as an environment has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import Policy
from rldistill.core.spec import ObsPart


class Agent:
    """Policy with the recurrent state of the current episodes.

    It takes arrays, lists, integers and dicts of these, as Gymnasium's environments return them, and returns the most
    likely actions. A mask of legal actions is the entry `action_mask` of a dict.

    Example:
        >>> agent = Agent(load_policy("runs/cartpole/students/mlp/seed-0"))
        >>> obs, _ = env.reset()
        >>> obs, *_ = env.step(agent.act(obs))
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state: Tensor | None = None

    def reset(self, done: Any = None) -> None:
        """Start a new episode: in the whole batch, or where `done` is True, `[B]`."""
        if done is None:
            self.state = None
        elif self.state is not None:
            ended = torch.as_tensor(np.asarray(done, bool), device=self.state.device)
            initial = self.policy.initial_state(len(ended))
            assert initial is not None
            self.state = torch.where(ended.view(-1, *[1] * (self.state.ndim - 1)), initial, self.state)

    def act(self, obs: Any) -> Any:
        """Return the action for one observation: an integer, or an array `[A]`.

        Raises:
            SpecMismatchError: The observation does not have the entries, shapes or dtypes of the policy's spec.
        """
        action = self._actions(obs, batched=False)[0]
        return action if action.shape else action.item()

    def act_batch(self, obs: Any) -> NDArray[Any]:
        """Return the actions for a batch of observations: integers `[B]`, or an array `[B, A]`; see `act`."""
        return self._actions(obs, batched=True)

    def _actions(self, obs: Any, batched: bool) -> NDArray[Any]:
        tensor = next(self.policy.parameters(), None) if isinstance(self.policy, nn.Module) else None
        device = "cpu" if tensor is None else tensor.device
        batch = torch.from_numpy(self._batch(obs, batched)).to(device)
        if self.state is None:
            self.state = self.policy.initial_state(len(batch))
        elif len(self.state) != len(batch):
            raise SpecMismatchError(
                f"act: the agent has the state of {len(self.state)} episodes, found {len(batch)} observations. "
                "Call reset() before another batch size."
            )
        with torch.no_grad():
            output, self.state = self.policy(batch, self.state)
        action: NDArray[Any] = output.mode().cpu().numpy()
        if not np.isfinite(action).all():
            raise SpecMismatchError("act: the policy returned an action that is NaN or infinite. Check its weights.")
        return action

    def _batch(self, obs: Any, batched: bool) -> NDArray[Any]:
        """Return observations `[B, *obs_shape]`, in which the entries of a dict follow one another."""
        spec = self.policy.spec
        if not spec.parts:
            return _array(obs, spec.entries[""], "the observation", batched)
        if not isinstance(obs, Mapping):
            return _array(obs, ObsPart(spec.obs_shape, spec.obs_dtype), "the observation", batched)
        if missing := [key for key, _ in spec.parts if key not in obs]:
            raise SpecMismatchError(f"act: the observation has no entry {missing[0]!r}, only {', '.join(obs)}")
        entries = [_array(obs[key], part, f"the entry {key!r}", batched) for key, part in spec.parts]
        return np.concatenate([entry.reshape(len(entry), -1).astype(np.float32) for entry in entries], 1)


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
    return converted
