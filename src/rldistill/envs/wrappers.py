"""Wrappers that an agent of rl-baselines3-zoo may have been trained behind, and that Gymnasium does not have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError
from rldistill.core.heads import MASK

Env = gymnasium.Env[Any, Any]
Array = NDArray[Any]
POSITIONS = {
    "CartPole": (0, 2),
    "MountainCar": (0,),
    "MountainCarContinuous": (0,),
    "Pendulum": (0, 1),
    "LunarLander": (0, 1, 4, 6, 7),
    "LunarLanderContinuous": (0, 1, 4, 6, 7),
}
"""For each environment the entries of its observation that are no velocities."""


def _count(name: str, value: Any, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name}: expected an integer from 1 to {most:,}, found {value!r}")
    return value


class TimeFeature(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Appends the part of the time that is left, 1 - t / max_steps (Pardo 2018, arXiv 1712.00378).

    As sb3-contrib's, to the entry `observation` of a dict, in the dtype of what it is appended to; always 1 with
    `test_mode`.
    """

    def __init__(self, env: Env, max_steps: int = 1000, test_mode: bool = False) -> None:
        super().__init__(env)
        space = env.observation_space
        self._dict = isinstance(space, spaces.Dict)
        inner = space.spaces.get("observation") if isinstance(space, spaces.Dict) else space
        if not isinstance(inner, spaces.Box) or len(inner.shape) != 1:
            raise ValueError(f"it needs observations of one vector, alone or as 'observation' of a dict, not {space}")
        limit = env.spec.max_episode_steps if env.spec is not None else None
        self.max_steps, self.test_mode, self._step = limit or _count("max_steps", max_steps, 1_000_000), test_mode, 0
        self._dtype: Any = inner.dtype
        timed = spaces.Box(self._appended(inner.low, 0), self._appended(inner.high, 1), dtype=self._dtype)
        self.observation_space = (
            spaces.Dict({**space.spaces, "observation": timed}) if isinstance(space, spaces.Dict) else timed
        )

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._step = 0
        return self._seen(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._step += 1
        return self._seen(obs), reward, terminated, truncated, info

    def _seen(self, obs: Any) -> Any:
        left = 1.0 if self.test_mode else 1 - self._step / self.max_steps
        if self._dict:
            return {**obs, "observation": self._appended(obs["observation"], left)}
        return self._appended(obs, left)

    def _appended(self, obs: Array, left: float) -> Array:
        return np.append(obs, left).astype(self._dtype)


class History(gymnasium.Wrapper[Array, Any, Array, Any]):
    """The last `horizon` observations, then the last `horizon` actions, zeros before the first.

    As rl-baselines3-zoo's, in the dtype of the observations.
    """

    def __init__(self, env: Env, horizon: int = 2) -> None:
        super().__init__(env)
        obs, action = _box(env), env.action_space
        _count("horizon", horizon, 1_000)
        if not isinstance(action, spaces.Box):
            raise ValueError(f"History needs continuous actions, these are {action}")
        self._obs, self._actions = (np.zeros((horizon, *box.shape), obs.dtype) for box in (obs, action))
        low, high = (
            np.concatenate([np.tile(getattr(box, end), horizon) for box in (obs, action)]) for end in ("low", "high")
        )
        self.observation_space = spaces.Box(low.astype(obs.dtype), high.astype(obs.dtype), dtype=obs.dtype)

    def reset(self, **kwargs: Any) -> tuple[Array, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._obs[:], self._actions[:] = 0, 0
        self._obs[-1] = obs
        return self._seen(), info

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        obs, *rest = self.env.step(action)
        for past, new in ((self._obs, obs), (self._actions, action)):
            past[:-1] = past[1:].copy()
            past[-1] = new
        return self._seen(), *rest  # type: ignore[return-value]

    def _seen(self) -> Array:
        return np.concatenate([self._obs.ravel(), self._actions.ravel()])


class FrameSkip(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes each action `skip` times, or until the episode ends, and sums the rewards."""

    def __init__(self, env: Env, skip: int = 4) -> None:
        super().__init__(env)
        self.skip = _count("skip", skip, 1_000)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.skip):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


class MaskVelocity(gymnasium.ObservationWrapper[Array, Any, Array]):
    """Velocities are 0, so that the state is only partly seen."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        name = env.spec.id.split("-")[0] if env.spec is not None else ""
        if name not in POSITIONS:
            raise ValueError(f"MaskVelocity knows {', '.join(POSITIONS)}, not {name or 'this environment'}")
        self._mask = np.zeros(_box(env).shape, np.float32)
        self._mask[list(POSITIONS[name])] = 1

    def observation(self, observation: Array) -> Array:
        return observation * self._mask


class ActionSmoothing(gymnasium.Wrapper[Any, Any, Any, Any]):
    """a_t = coef * a_{t-1} + (1 - coef) * action."""

    def __init__(self, env: Env, smoothing_coef: float = 0.0) -> None:
        super().__init__(env)
        if type(smoothing_coef) not in (int, float) or not 0 <= smoothing_coef < 1:
            raise ValueError(f"smoothing_coef: expected a number from 0 to below 1, found {smoothing_coef!r}")
        self.coef, self._action = smoothing_coef, None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._action = None
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        before = np.zeros_like(action) if self._action is None else self._action
        self._action = self.coef * before + (1 - self.coef) * action
        return self.env.step(self._action)


class StackFrames(gymnasium.Wrapper[Array, Any, Array, Any]):
    """The last `stack` observations joined along their last axis, as SB3 stacks them, `padding` before the first."""

    def __init__(self, env: Env, stack: int = 4, padding: Sequence[float] = (0.0,)) -> None:
        super().__init__(env)
        box = _box(env)
        self._frames = np.zeros((_count("stack", stack, 1_000), *box.shape), box.dtype)
        self._padding = np.asarray(padding, box.dtype).reshape(box.shape if len(padding) > 1 else ())
        low, high = (np.concatenate([getattr(box, end)] * stack, -1) for end in ("low", "high"))
        self.observation_space = spaces.Box(low, high, dtype=box.dtype)

    def reset(self, **kwargs: Any) -> tuple[Array, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._frames[:] = self._padding
        return self._seen(obs), info

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        obs, *rest = self.env.step(action)
        return self._seen(obs), *rest  # type: ignore[return-value]

    def _seen(self, obs: Array) -> Array:
        self._frames[:-1] = self._frames[1:].copy()
        self._frames[-1] = obs
        return np.concatenate(list(self._frames), -1)


class ChannelsFirst(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Pictures `[H, W, C]` as networks take them: `[C, H, W]`; of a dict, all that are pictures of bytes."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        space = env.observation_space
        if isinstance(space, spaces.Dict):
            self._pictures = {key for key, inner in space.items() if _is_picture(inner)}
            moved = {key: _moved(inner) if key in self._pictures else inner for key, inner in space.items()}
            self.observation_space = spaces.Dict(moved)
        else:
            self._pictures = set()
            self.observation_space = _moved(_box(env))

    def observation(self, observation: Any) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {k: _to_front(obs) if k in self._pictures else obs for k, obs in observation.items()}
        return _to_front(observation)


class ActionMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Shows which actions are legal, as the environment's `action_masks` tells, beside the observation.

    One number for each choice, as sb3-contrib has it: of a bit there are two, whether it may be 0 and 1.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        space = env.observation_space
        entries = dict(space.spaces) if isinstance(space, spaces.Dict) else {"obs": space}
        self._size = _num_choices(env.action_space)
        self.observation_space = spaces.Dict({**entries, MASK: spaces.MultiBinary(self._size)})
        self._dict = isinstance(space, spaces.Dict)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        return self._seen(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, *rest = self.env.step(action)
        return self._seen(obs), *rest  # type: ignore[return-value]

    def _seen(self, obs: Any) -> dict[str, Any]:
        mask = np.asarray(self.env.get_wrapper_attr("action_masks")(), np.int8).ravel()
        if len(mask) != self._size:
            raise ConfigError(
                f"env: action_masks() tells of {len(mask)} choices, {self.action_space} has {self._size}; return one "
                "number for each, 1 where it is legal"
            )
        return {**(obs if self._dict else {"obs": obs}), MASK: mask}


class FlatDict(gymnasium.ObservationWrapper[Array, Any, Any]):
    """A dict of arrays and integers as one float32 vector, entry after entry; `space` is what they were."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Dict):
            raise ValueError(f"it needs observations in a dict, these are {space}")
        self.space: dict[str, spaces.Space[Any]] = dict(space.spaces)
        size = sum(int(np.prod(inner.shape or ())) for inner in self.space.values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def observation(self, observation: Any) -> Array:
        return np.concatenate([np.asarray(observation[key], np.float32).ravel() for key in self.space])


def _num_choices(actions: spaces.Space[Any]) -> int:
    if isinstance(actions, spaces.Discrete):
        return int(actions.n)
    if isinstance(actions, spaces.MultiDiscrete):
        return int(actions.nvec.sum())
    if isinstance(actions, spaces.MultiBinary):
        return 2 * math.prod(actions.shape)
    raise ConfigError(f"env: it has action_masks(), which are for discrete actions; these are {actions}")


def _is_picture(space: spaces.Space[Any]) -> bool:
    return space.dtype == np.uint8 and len(space.shape or ()) == 3


def _moved(space: spaces.Space[Any]) -> spaces.Box:
    if not isinstance(space, spaces.Box):
        raise ValueError(f"it needs pictures, these are {space}")
    return spaces.Box(_to_front(space.low), _to_front(space.high), dtype=space.dtype)


def _to_front(pictures: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(pictures, -1, 0))


def _box(env: Env) -> spaces.Box:
    if not isinstance(env.observation_space, spaces.Box):
        raise ValueError(f"it needs observations of one array, these are {env.observation_space}")
    return env.observation_space
