"""Wrappers of rl-baselines3-zoo that Gymnasium does not have, and those for dict observations and action masks."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.spaces import flatdim, flatten, flatten_space
from gymnasium.wrappers import TransformObservation
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError
from rldistill.core.heads import MASK

Env = gymnasium.Env[Any, Any]
Array = NDArray[Any]
Step = tuple[Any, Any, bool, bool, dict[str, Any]]
POSITIONS = {
    "CartPole": (0, 2),
    "MountainCar": (0,),
    "MountainCarContinuous": (0,),
    "Pendulum": (0, 1),
    "LunarLander": (0, 1, 4, 6, 7),
    "LunarLanderContinuous": (0, 1, 4, 6, 7),
}
"""Entries of the observation that are not velocities."""


class EpisodeWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Base of wrappers whose observation depends on the episode so far."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and the state of the wrapper."""
        obs, info = self.env.reset(**kwargs)
        self._begin(obs)
        return self._observation(obs), info

    def step(self, action: Any) -> Step:
        """Step the environment and update the state of the wrapper."""
        obs, *others = self.env.step(action)
        self._update(obs, action)
        return self._observation(obs), *others

    def _begin(self, obs: Any) -> None: ...
    def _update(self, obs: Any, action: Any) -> None: ...
    def _observation(self, obs: Any) -> Any: ...


class TimeFeature(EpisodeWrapper):
    """Wrapper that appends the remaining time, 1 - t / max_steps (Pardo 2018, arXiv 1712.00378).

    As in sb3-contrib: in the dtype of the observation, to the entry `observation` of a dict, always 1 in `test_mode`.
    """

    def __init__(self, env: Env, max_steps: int = 1000, test_mode: bool = False) -> None:
        super().__init__(env)
        space = env.observation_space
        inner = space.spaces.get("observation") if isinstance(space, spaces.Dict) else space
        if not isinstance(inner, spaces.Box) or len(inner.shape) != 1:
            raise ValueError(f"expected a vector, alone or as 'observation' of a dict, found {space}")
        limit = env.spec.max_episode_steps if env.spec is not None else None
        self.max_steps, self.test_mode = limit or _require_count("max_steps", max_steps, 1_000_000), test_mode
        self.steps, self._dtype = 0, inner.dtype
        with_time = spaces.Box(self._append(inner.low, 0), self._append(inner.high, 1), dtype=inner.dtype)
        self.observation_space = (
            spaces.Dict({**space.spaces, "observation": with_time}) if isinstance(space, spaces.Dict) else with_time
        )

    def _begin(self, obs: Any) -> None:
        self.steps = 0

    def _update(self, obs: Any, action: Any) -> None:
        self.steps += 1

    def _observation(self, obs: Any) -> Any:
        remaining = 1.0 if self.test_mode else 1 - self.steps / self.max_steps
        if isinstance(self.observation_space, spaces.Dict):
            return {**obs, "observation": self._append(obs["observation"], remaining)}
        return self._append(obs, remaining)

    def _append(self, obs: Array, remaining: float) -> Array:
        return np.append(obs, remaining).astype(self._dtype)


class History(EpisodeWrapper):
    """Wrapper that shows the last `horizon` observations, then the last `horizon` actions, zeros before the first.

    As in rl-baselines3-zoo: in the dtype of the observations.
    """

    def __init__(self, env: Env, horizon: int = 2) -> None:
        super().__init__(env)
        obs, action = _require_box(env), env.action_space
        _require_count("horizon", horizon, 1_000)
        if not isinstance(action, spaces.Box):
            raise ValueError(f"expected continuous actions, found {action}")
        self._obs, self._actions = (np.zeros((horizon, *box.shape), obs.dtype) for box in (obs, action))
        low, high = (
            np.concatenate([np.tile(getattr(box, bound), horizon) for box in (obs, action)]).astype(obs.dtype)
            for bound in ("low", "high")
        )
        self.observation_space = spaces.Box(low, high, dtype=obs.dtype)

    def _begin(self, obs: Any) -> None:
        self._obs[:], self._actions[:] = 0, 0
        self._obs[-1] = obs

    def _update(self, obs: Any, action: Any) -> None:
        self._obs[:-1], self._actions[:-1] = self._obs[1:], self._actions[1:]
        self._obs[-1], self._actions[-1] = obs, action

    def _observation(self, obs: Any) -> Array:
        return np.concatenate([self._obs.ravel(), self._actions.ravel()])


class StackFrames(EpisodeWrapper):
    """Wrapper that joins the last `stack` observations along the last axis, as SB3 does, with `padding` at first."""

    def __init__(self, env: Env, stack: int = 4, padding: Sequence[float] = (0.0,)) -> None:
        super().__init__(env)
        box = _require_box(env)
        self._frames = np.zeros((_require_count("stack", stack, 1_000), *box.shape), box.dtype)
        self._padding = np.asarray(padding, box.dtype).reshape(box.shape if len(padding) > 1 else ())
        low, high = (np.concatenate([getattr(box, bound)] * stack, -1) for bound in ("low", "high"))
        self.observation_space = spaces.Box(low, high, dtype=box.dtype)

    def _begin(self, obs: Any) -> None:
        self._frames[:] = self._padding
        self._frames[-1] = obs

    def _update(self, obs: Any, action: Any) -> None:
        self._frames[:-1] = self._frames[1:]
        self._frames[-1] = obs

    def _observation(self, obs: Any) -> Array:
        return np.concatenate(list(self._frames), -1)


class PadObservation(TransformObservation):
    """Wrapper that replaces parts of a vector by zeros, for agents of older versions of an environment.

    Each of the `segments` is the number of values that are kept, of zeros after them, and of values left out there.
    """

    def __init__(self, env: Env, segments: Sequence[Sequence[int]]) -> None:
        box = _require_box(env)
        columns: list[int] = []
        start = 0
        for keep, zeros, drop in segments:
            columns += [*range(start, start + keep), *[-1] * zeros]
            start += keep + drop
        if len(box.shape) != 1 or start != box.shape[0]:
            raise ValueError(f"segments: expected those of {box.shape} values, found {start}")
        index = np.array(columns)

        def pad(values: Array) -> Array:
            return np.where(index < 0, 0, values[index]).astype(values.dtype)

        super().__init__(env, pad, spaces.Box(pad(box.low), pad(box.high), dtype=box.dtype.type))


class ActionMask(EpisodeWrapper):
    """Wrapper that adds the environment's `action_masks()` to the observation: 1 for each legal action.

    As in sb3-contrib: one number for each choice, and two for a bit, which may be 0 and may be 1.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        space = env.observation_space
        entries = dict(space.spaces) if isinstance(space, spaces.Dict) else {"obs": space}
        actions, self._is_dict = env.action_space, isinstance(space, spaces.Dict)
        if not isinstance(actions, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            raise ConfigError(f"env: action_masks() need discrete actions, found {actions}. Remove action_masks().")
        self._size = flatdim(actions) * (2 if isinstance(actions, spaces.MultiBinary) else 1)
        self.observation_space = spaces.Dict({**entries, MASK: spaces.MultiBinary(self._size)})

    def _observation(self, obs: Any) -> dict[str, Any]:
        mask = np.asarray(self.env.get_wrapper_attr("action_masks")(), bool).astype(np.int8).ravel()
        if len(mask) != self._size:
            raise ConfigError(
                f"env: action_masks() returns {len(mask)} numbers, {self.action_space} has {self._size} choices. "
                "Return one number for each choice."
            )
        return {**(obs if self._is_dict else {"obs": obs}), MASK: mask}


class WorldParameters(EpisodeWrapper):
    """Wrapper that appends the parameters of the episode's world (`env.worlds`), in their order, as float32."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        box = _require_box(env)
        count = env.get_wrapper_attr("num_parameters") if env.has_wrapper_attr("num_parameters") else 0
        if len(box.shape) != 1 or not count:
            raise ValueError(f"expected a vector and env.worlds of numbers, found {box} and {count} numbers")
        bound = np.full(count, np.inf, np.float32)
        self.observation_space = spaces.Box(np.append(box.low, -bound), np.append(box.high, bound), dtype=np.float32)

    def _observation(self, obs: Any) -> Array:
        world = self.env.get_wrapper_attr("world")
        return np.append(obs, [float(value) for value in world.values()]).astype(np.float32)


class LastAction(EpisodeWrapper):
    """Wrapper that appends the last action to a vector, as float32: discrete ones as one-hot, zeros at first.

    Recurrent students recognize unknown dynamics by the effect of their actions.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        box, space = _require_box(env), env.action_space
        if len(box.shape) != 1:
            raise ValueError(f"expected a vector, found {box}")
        flat: Any = flatten_space(space)
        self._last: Any = np.zeros(flat.shape)
        low, high = np.append(box.low, flat.low), np.append(box.high, flat.high)
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def _begin(self, obs: Any) -> None:
        self._last = np.zeros_like(self._last)

    def _update(self, obs: Any, action: Any) -> None:
        self._last = flatten(self.env.action_space, action)

    def _observation(self, obs: Any) -> Array:
        return np.append(obs, self._last).astype(np.float32)


class FrameSkip(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that repeats each action `skip` times, or until the episode ends, and sums the rewards."""

    def __init__(self, env: Env, skip: int = 4) -> None:
        super().__init__(env)
        self.skip = _require_count("skip", skip, 1_000)

    def step(self, action: Any) -> Step:
        """Repeat the action."""
        total = 0.0
        for _ in range(self.skip):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


class ActionSmoothing(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that smooths actions: a_t = coef * a_{t-1} + (1 - coef) * action."""

    def __init__(self, env: Env, smoothing_coef: float = 0.0) -> None:
        super().__init__(env)
        if type(smoothing_coef) not in (int, float) or not 0 <= smoothing_coef < 1:
            raise ValueError(f"smoothing_coef: expected a number from 0 to below 1, found {smoothing_coef!r}")
        self.coef, self._action = smoothing_coef, None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, whose first action is smoothed with zeros."""
        self._action = None
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Step:
        """Take the smoothed action."""
        previous = np.zeros_like(action) if self._action is None else self._action
        self._action = self.coef * previous + (1 - self.coef) * action
        return self.env.step(self._action)


class MaskVelocity(TransformObservation):
    """Wrapper that sets velocities to 0, so that the state is only partly observed."""

    def __init__(self, env: Env) -> None:
        name = env.spec.id.split("-")[0] if env.spec is not None else ""
        if name not in POSITIONS:
            raise ValueError(f"expected one of {', '.join(POSITIONS)}, found {name or 'another environment'}")
        mask = np.zeros(_require_box(env).shape, np.float32)
        mask[list(POSITIONS[name])] = 1
        super().__init__(env, lambda obs: obs * mask, None)


class ChannelsFirst(TransformObservation):
    """Wrapper that turns images `[H, W, C]` into `[C, H, W]`; in a dict, those of bytes, unless C is first already.

    As SB3, which takes the smallest size of an image as C.
    """

    def __init__(self, env: Env) -> None:
        space = env.observation_space
        if not isinstance(space, spaces.Dict):
            super().__init__(env, _to_front, _channels_first(space))
            return
        images = {
            key
            for key, part in space.items()
            if part.dtype == np.uint8 and len(part.shape or ()) == 3 and np.argmin(part.shape or ()) > 0
        }
        moved = {key: _channels_first(part) if key in images else part for key, part in space.items()}
        super().__init__(
            env,
            lambda obs: {key: _to_front(part) if key in images else part for key, part in obs.items()},
            spaces.Dict(moved),
        )


def _channels_first(space: spaces.Space[Any]) -> spaces.Box:
    if not isinstance(space, spaces.Box):
        raise ValueError(f"expected images, found {space}")
    return spaces.Box(_to_front(space.low), _to_front(space.high), dtype=space.dtype)


def _to_front(images: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(images, -1, 0))


def _require_box(env: Env) -> spaces.Box:
    if not isinstance(env.observation_space, spaces.Box):
        raise ValueError(f"expected observations of one array, found {env.observation_space}")
    return env.observation_space


def _require_count(name: str, value: Any, maximum: int) -> int:
    if type(value) is not int or not 1 <= value <= maximum:
        raise ValueError(f"{name}: expected an integer from 1 to {maximum:,}, found {value!r}")
    return value
