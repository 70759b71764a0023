"""The boundary to environments of the user: actions, results and errors as the rest of the package expects them."""

import math
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rldistill.core.errors import USER_ERRORS, RLDistillError, SpecMismatchError, failure, short_repr
from rldistill.envs.wrappers import Env, Step

INTERFACE = (
    "Gymnasium expects reset(self, *, seed=None, options=None), which returns (obs, info), and step(self, action), "
    "which returns (obs, reward, terminated, truncated, info)"
)
OLD_INTERFACE = ("argument 'seed'", "argument 'options'", "argument 'return_info'", "values to unpack")
"""Parts of Python's messages about methods of the old Gym interface."""
PYTORCH_DTYPES = {"bool": "int8", "uint16": "int64", "uint32": "int64", "uint64": "int64", "float128": "float64"}
MAX_FLOAT = float(np.finfo(np.float32).max)
"""Largest number that networks compute with."""


def obs_dtype(dtype: Any) -> str:
    """Return the dtype in which observations are stored, in the byte order of this machine and as PyTorch has it."""
    name = str(np.dtype(dtype).newbyteorder("="))
    return PYTORCH_DTYPES.get(name, name)


class RewardMeter(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Innermost wrapper that sums the environment's own rewards, which other wrappers may change."""

    total = 0.0

    def step(self, action: Any) -> Any:
        """Step the environment and add its reward."""
        result = self.env.step(action)
        if isinstance(result, tuple) and len(result) == 5:
            self.total += _number(result[1])
        return result


class CheckedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Outermost wrapper, which converts actions and results, and turns errors of the user's code into one line.

    Actions count from 0, lie within the bounds in the dtype of the space, and are rounded if they are integers there.
    Observations have a dtype that PyTorch has: bits are int8. The reward is a number.

    Attributes:
        own_reward: Reward of the last step, in units of the environment without `env.wrappers`.
        info: Last value of each key of `info` in the steps of the episode.
    """

    own_reward = 0.0

    def __init__(self, env: Env, name: str, meter: RewardMeter | None = None) -> None:
        super().__init__(env)
        self.name, self._meter = name, meter
        self.info: dict[Any, Any] = {}
        # Kept here, since a wrapper searches the whole chain of wrappers for each of its spaces. gymnasium.Wrapper has
        # those set below, as `_action_space` and `_observation_space`.
        self._space, self._sent_space = env.observation_space, env.action_space
        space, action = self._space, self._sent_space
        self._dtype = None if space.dtype is None or space.shape is None else np.dtype(space.dtype)
        if isinstance(space, spaces.Box) and (dtype := np.dtype(obs_dtype(space.dtype))) != space.dtype:
            low, high = (np.clip(bound, *_limits(dtype)) for bound in (space.low, space.high))
            self.observation_space = spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)
        else:
            self.observation_space = space
        self._stored_dtype = self.observation_space.dtype
        self._start: Any = getattr(action, "start", None)
        if isinstance(action, spaces.Discrete) and action.start:
            self.action_space = spaces.Discrete(int(action.n))
        elif isinstance(action, spaces.MultiDiscrete) and np.any(action.start):
            self.action_space = spaces.MultiDiscrete(action.nvec)
        elif isinstance(action, spaces.Box) and action.dtype == bool:
            self.action_space = spaces.Box(action.low.astype(np.int8), action.high.astype(np.int8), dtype=np.int8)
        elif isinstance(action, spaces.Box) and action.dtype == np.float64:  # policies act in float32
            low, high = (np.where(np.isinf(x), x, np.clip(x, -MAX_FLOAT, MAX_FLOAT)) for x in (action.low, action.high))
            self.action_space = spaces.Box(low, high, dtype=np.float64)
        else:  # held, since an environment that makes new spaces in reset would lose the seed of its random actions
            self.action_space = action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; raise SpecMismatchError for an error or an invalid result."""
        try:
            result: Any = self.env.reset(seed=seed, options=options)
        except USER_ERRORS as error:
            raise self._failed("reset", error) from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._invalid(f"reset returned {kind_of(result)}", INTERFACE)
        if self._meter is not None:
            self._meter.total = 0.0
        self.info = {}
        return self._observation(result[0]), {}

    def step(self, action: Any) -> Step:
        """Step the environment; raise SpecMismatchError for an error or an invalid result."""
        if self._meter is not None:
            self._meter.total = 0.0
        try:
            result: Any = self.env.step(self._action(action))
        except USER_ERRORS as error:
            raise self._failed("step", error) from error
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._invalid(f"step returned {kind_of(result)}", INTERFACE)
        obs, reward, terminated, truncated, info = result
        value = _number(reward)
        if not math.isfinite(value):
            scalar = isinstance(reward, float | np.number) or (
                np.size(reward) == 1 and np.asarray(reward).dtype.kind == "f"
            )
            raise self._invalid(
                f"a reward is {'NaN or infinite' if scalar else kind_of(reward)}", "Return a finite number"
            )
        self.own_reward = value if self._meter is None else self._meter.total
        ends = [terminated, truncated]
        for number, end in enumerate(ends):
            if isinstance(end, bool):
                continue
            if np.size(end) != 1 or np.asarray(end).dtype.kind not in "biuf":
                raise self._invalid(f"terminated or truncated is {kind_of(end)}", "Return True or False")
            ends[number] = bool(np.asarray(end).item())
        if isinstance(info, dict):  # kept here, since its values may not fit into a batch
            self.info |= info
        return self._observation(obs), value, ends[0], ends[1], {}

    def numbers(self) -> dict[str, float]:
        """Return the last number of each key of `info` in the episode, NaN for values that are none."""
        return {str(key): _number(value) for key, value in self.info.items()}

    def close(self) -> None:
        """Close the environment; warn if that fails, since all results are there already."""
        try:
            self.env.close()
        except USER_ERRORS as error:
            warnings.warn(f"env close failed: {failure(error)}", stacklevel=2)

    def _action(self, action: Any) -> Any:
        space = self._sent_space
        if isinstance(space, spaces.Discrete):
            return action + self._start if self._start else action
        if isinstance(space, spaces.MultiDiscrete):
            return (np.asarray(action) + self._start).astype(space.dtype) if np.any(self._start) else action
        if isinstance(space, spaces.Box) and space.dtype != np.float32:  # the head's bounds are float32
            number = np.asarray(action, np.float64)
            number = np.rint(number) if np.dtype(space.dtype).kind in "iub" else number
            return np.clip(number, space.low, space.high).astype(space.dtype)
        # A copy, since environments may change the array in place, and the action is recorded after the step.
        return action.copy() if isinstance(action, np.ndarray) else action

    def _observation(self, obs: Any) -> Any:
        if self._dtype is None:
            return obs
        array = fitting_array(obs, self._space, f"env: {self.name}: the observation")
        return array if array.dtype == self._stored_dtype else array.astype(self._stored_dtype or array.dtype)

    def _failed(self, method: str, error: BaseException) -> RLDistillError:
        if isinstance(error, RLDistillError):
            return error
        hint = ""
        if isinstance(error, TypeError | ValueError) and any(part in str(error) for part in OLD_INTERFACE):
            hint = f" This is the old Gym interface. {INTERFACE}."
        return SpecMismatchError(f"env {method} failed: {failure(error)}.{hint}")

    def _invalid(self, problem: str, remedy: str) -> SpecMismatchError:
        return SpecMismatchError(f"env: {self.name}: {problem}. {remedy}.")


def fitting_array(value: Any, space: Any, where: str) -> NDArray[Any]:
    """Return an observation, or an entry of one, as an array; raise SpecMismatchError unless it fits its space."""
    try:
        array = np.asarray(value)
    except Exception:  # lists of different lengths, tensors on a GPU or with a gradient
        array = np.asarray(None)
    shape, dtype = space.shape, space.dtype
    if array.size == 1 and shape in ((), (1,)):
        array = array.reshape(shape)
    problem = ""
    if array.shape != shape or not (array.dtype == dtype or np.can_cast(array.dtype, dtype, "same_kind")):
        found = f"{array.dtype} of shape {array.shape}" if array.dtype.kind != "O" else kind_of(value)
        problem = f"found {found}, its space has {dtype} of shape {shape}"
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        choice = array - space.start
        if (choice < 0).any() or (choice >= (space.n if isinstance(space, spaces.Discrete) else space.nvec)).any():
            problem = f"found {short_repr(array.tolist())}, its space is {space}"
    if problem:
        raise SpecMismatchError(f"{where} does not fit: {problem}. Correct the one or the other.")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array.itemsize <= 4 or _fits_float32(array))):
        raise SpecMismatchError(f"{where} is NaN, infinite, or beyond float32. Return finite numbers.")
    return array


def _fits_float32(array: NDArray[Any]) -> bool:
    return bool((np.abs(array) <= MAX_FLOAT).all())


def _number(value: Any) -> float:
    """Return a number, also one in an array, as a float; NaN if it is none."""
    if isinstance(value, float):
        return value
    try:
        array = np.asarray(value)
        return float(array.item()) if array.size == 1 and array.dtype.kind in "biuf" else math.nan
    except Exception:  # a tensor with a gradient, for one
        return math.nan


def kind_of(value: Any) -> str:
    """Return the type of a value, with its length or shape."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{size}"


def _limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    limits: Any = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
    return limits.min, limits.max
