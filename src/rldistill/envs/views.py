"""Two views of one state: the observations of teacher and student at the same step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.policy import ObsTransformPolicy, Policy
from rldistill.core.spec import PolicySpec, Side
from rldistill.envs.wrappers import Env, Step

Reset = tuple[Any, dict[str, Any]]
MOVE = "Move it to env.wrappers, which both views share."


class Tap(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Base of one view's wrappers, which replays the step that was taken for both views."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.result: Reset | Step | None = None
        self.action: Any = None

    def reset(self, **kwargs: Any) -> Reset:
        """Return the result of the reset that was done for both views."""
        return self._take_result()  # type: ignore[no-any-return]

    def step(self, action: Any) -> Step:
        """Return the result of the step that was taken for both views; raise ConfigError for another action."""
        if not np.array_equal(action, self.action):
            raise ConfigError(f"env.views: a wrapper changes actions. {MOVE}")
        return self._take_result()  # type: ignore[no-any-return]

    def show(self, result: Reset | Step, action: Any = None) -> None:
        """Keep the result of a reset, or of a step, for the wrappers of the view."""
        self.result, self.action = result, action

    def _take_result(self) -> Any:
        if self.result is None:
            raise ConfigError(f"env.views: a wrapper takes more than one step at a time. {MOVE}")
        result, self.result = self.result, None
        return result


class SideBySide(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Base of wrappers that step an environment once for several `views`, which are the `taps` with their wrappers."""

    def __init__(self, env: Env, taps: Sequence[Tap], views: Sequence[Env]) -> None:
        super().__init__(env)
        self.taps, self.views = taps, views
        for tap, view in zip(taps, views, strict=True):
            if view.action_space != tap.action_space:
                raise ConfigError(f"env.views: a wrapper changes the action space to {view.action_space}. {MOVE}")

    def _pack(self, observations: list[Any]) -> Any:
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """Reset the environment once, and all views with its result."""
        obs, info = self.env.reset(seed=seed, options=options)
        for tap in self.taps:
            tap.show((obs, info))
        return self._pack([view.reset(seed=seed, options=options)[0] for view in self.views]), info

    def step(self, action: Any) -> Step:
        """Step the environment once; raise ConfigError if a view changes more than the observation."""
        result = self.env.step(action)
        observations = []
        for tap, view in zip(self.taps, self.views, strict=True):
            tap.show(result, action)
            obs, *others = view.step(tap.action)
            if tuple(others[:3]) != result[1:4]:
                raise ConfigError(f"env.views: a wrapper changes rewards or ends episodes. {MOVE}")
            observations.append(obs)
        return self._pack(observations), *result[1:]


class TwoViews(SideBySide):
    """Wrapper whose observation is the bytes of the student's observation, then those of the teacher's."""

    def __init__(self, env: Env, taps: tuple[Tap, Tap], views: tuple[Env, Env]) -> None:
        super().__init__(env, taps, views)
        observed = [view.observation_space for view in views]
        size = sum(np.dtype(space.dtype).itemsize * math.prod(space.shape or ()) for space in observed)
        self.observation_space = spaces.Box(0, 255, (size,), np.uint8)

    def _pack(self, observations: list[Any]) -> NDArray[np.uint8]:
        pairs = zip(observations, self.views, strict=True)
        arrays = (np.asarray(obs, view.observation_space.dtype) for obs, view in pairs)
        return np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8)


class NamedViews(SideBySide):
    """Wrapper whose observation is a dict with the observation of each teacher by its name."""

    def __init__(self, env: Env, taps: Sequence[Tap], views: Mapping[str, Env]) -> None:
        super().__init__(env, taps, [*views.values()])
        self.names = [*views]
        self.observation_space = spaces.Dict([(name, view.observation_space) for name, view in views.items()])

    def _pack(self, observations: list[Any]) -> dict[str, Any]:
        return dict(zip(self.names, observations, strict=True))


@dataclass(frozen=True)
class ObservationViews:
    """Observations of student and teacher: the same array, or its parts if it is `packed` by `TwoViews`."""

    student: PolicySpec
    teacher: PolicySpec
    packed: bool = False

    def select(self, side: Side, obs: NDArray[Any]) -> NDArray[Any]:
        """Return one side's observations, `[B, *obs_shape]`."""
        return self._unpack(side, torch.from_numpy(obs)).numpy() if self.packed else obs

    def policy_on(self, side: Side, policy: Policy) -> Policy:
        """Return the policy of one side for observations of the environment."""
        return ObsTransformPolicy(policy, partial(self._unpack, side)) if self.packed else policy

    def _unpack(self, side: Side, obs: Tensor) -> Tensor:
        spec, start = getattr(self, side), 0 if side == "student" else _num_bytes(self.student)
        part = obs[:, start : start + _num_bytes(spec)].clone(memory_format=torch.contiguous_format)  # aligned
        return part.reshape(-1).view(getattr(torch, spec.obs_dtype)).reshape(len(obs), *spec.obs_shape)


def _num_bytes(spec: PolicySpec) -> int:
    return np.dtype(spec.obs_dtype).itemsize * math.prod(spec.obs_shape)
