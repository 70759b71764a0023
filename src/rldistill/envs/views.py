"""Two views of one state: what the teacher sees and what the student sees of the same step, side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.policy import ObsTransformPolicy, Policy
from rldistill.core.spec import PolicySpec

Env = gymnasium.Env[Any, Any]
Side = Literal["student", "teacher"]
SIDES: tuple[Side, ...] = ("student", "teacher")
BELOW = "it belongs into env.wrappers, below both views"


class Tap(gymnasium.Wrapper[Any, Any, Any, Any]):
    """What the wrappers of one view stand on: it shows them the step that was taken for both."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.shown: tuple[Any, ...] | None = None
        self.action: Any = None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        shown: tuple[Any, dict[str, Any]] = self._take()
        return shown

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not np.array_equal(action, self.action):
            raise ConfigError(f"env.views: a wrapper changes actions; {BELOW}")
        shown: tuple[Any, Any, bool, bool, dict[str, Any]] = self._take()
        return shown

    def _take(self) -> Any:
        if self.shown is None:
            raise ConfigError(f"env.views: a wrapper takes more than one step at a time; {BELOW}")
        shown, self.shown = self.shown, None
        return shown


class TwoViews(gymnasium.Env[NDArray[np.uint8], Any]):
    """One environment seen in two ways; an observation is the bytes of the student's, then those of the teacher's.

    Args:
        base: the environment, which is stepped once for both.
        taps: the two that stand on it.
        views: each tap with the wrappers of its view around it, the student's first.
    """

    def __init__(self, base: Env, taps: tuple[Tap, Tap], views: tuple[Env, Env]) -> None:
        self.base, self.taps, self.views = base, taps, views
        self.spec, self.render_mode, self.metadata = base.spec, base.render_mode, base.metadata
        self.action_space = base.action_space
        for view in views:
            if view.action_space != base.action_space:
                raise ConfigError(f"env.views: a wrapper changes the action space to {view.action_space}; {BELOW}")
        size = sum(
            np.dtype(view.observation_space.dtype).itemsize * math.prod(view.observation_space.shape or ())
            for view in views
        )
        self.observation_space = spaces.Box(0, 255, (size,), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Reset the environment once, and both views with it."""
        obs, info = self.base.reset(seed=seed, options=options)
        for tap in self.taps:
            tap.shown = obs, info
        return self._packed([view.reset(seed=seed, options=options)[0] for view in self.views]), info

    def step(self, action: Any) -> tuple[NDArray[np.uint8], Any, bool, bool, dict[str, Any]]:
        """Step the environment once; raises ConfigError if a view changes more than the observation."""
        obs, reward, terminated, truncated, info = self.base.step(action)
        seen = []
        for tap, view in zip(self.taps, self.views, strict=True):
            tap.shown, tap.action = (obs, reward, terminated, truncated, info), action
            here, *rest = view.step(action)
            if rest[:3] != [reward, terminated, truncated]:
                raise ConfigError(f"env.views: a wrapper changes rewards or ends episodes; {BELOW}")
            seen.append(here)
        return self._packed(seen), reward, terminated, truncated, info

    def _packed(self, seen: list[Any]) -> NDArray[np.uint8]:
        arrays = [np.asarray(obs, view.observation_space.dtype) for obs, view in zip(seen, self.views, strict=True)]
        return np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8)

    def render(self) -> Any:
        """The environment's own picture."""
        return self.base.render()

    def close(self) -> None:
        """Close the environment."""
        self.base.close()

    @property
    def unwrapped(self) -> Env:
        """The bare environment."""
        return self.base.unwrapped


@dataclass(frozen=True)
class ObservationViews:
    """What each side sees of a batch of observations: all of it, or its part of the bytes where there are two views."""

    student: PolicySpec
    teacher: PolicySpec
    packed: bool = False

    def select(self, side: Side, obs: NDArray[Any]) -> NDArray[Any]:
        """`[B, *obs_shape]` as that side sees it."""
        if not self.packed:
            return obs
        spec, start = getattr(self, side), 0 if side == "student" else _size(self.student)
        part = np.ascontiguousarray(obs[:, start : start + _size(spec)])
        seen: NDArray[Any] = part.view(spec.obs_dtype).reshape(len(obs), *spec.obs_shape)
        return seen

    def shown_to(self, policy: Policy, side: Side) -> Policy:
        """The policy, shown its side of each observation."""
        return ObsTransformPolicy(policy, partial(self._part, side)) if self.packed else policy

    def _part(self, side: Side, obs: Tensor) -> Tensor:
        spec, start = getattr(self, side), 0 if side == "student" else _size(self.student)
        part = obs[:, start : start + _size(spec)].contiguous()
        return part.view(getattr(torch, spec.obs_dtype)).reshape(len(obs), *spec.obs_shape)


def _size(spec: PolicySpec) -> int:
    return np.dtype(spec.obs_dtype).itemsize * math.prod(spec.obs_shape)
