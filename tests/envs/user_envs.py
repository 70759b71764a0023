"""Environments as people really have them; each is made by `tests.envs.user_envs:make` with its kind."""

from __future__ import annotations

import random
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

ID = f"{__name__}:make"


class MyError(Exception):
    """Error class of a simulator."""


class Base(gymnasium.Env[Any, Any]):
    """Three random numbers, two actions, 20 steps; reward 1 for the action that the first number names."""

    observation_space: Any = spaces.Box(-1, 1, (3,))
    action_space: Any = spaces.Discrete(2)
    length: float = 20

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> Any:
        self.numbers = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.numbers

    def reward(self, action: Any) -> Any:
        return float(np.all(np.asarray(action) == (self.numbers[0] > 0)))

    def step(self, action: Any) -> Any:
        self.steps += 1
        reward = self.reward(action)
        return self.observe(), reward, False, self.steps >= self.length, {}


class NewSpaces(Base):
    """What happens next depends on the action, and each reset makes new spaces, as in highway-env."""

    def reset(self, **kwargs: Any) -> Any:
        self.observation_space, self.action_space = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
        gymnasium.logger.deprecation("made of old parts")
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        result = super().step(action)
        return result[0] * action, *result[1:]


class Screen(Base):
    """A screen of a size that must be a tuple, as in highway-env."""

    def __init__(self, view: Any) -> None:
        self.observation_space = spaces.Box(0, 255, (2,) + view["size"], np.uint8)

    def observe(self) -> Any:
        super().observe()
        return np.zeros(self.observation_space.shape, np.uint8)


class Unbounded(Base):
    action_space = spaces.Box(-np.inf, np.inf, (2,))


class HalfBounded(Base):
    action_space = spaces.Box(np.array([0, -np.inf], np.float32), np.array([np.inf, 3], np.float32))


class Float64Bounds(Base):
    action_space = spaces.Box(-0.1, 0.1, (1,), np.float64)

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        return super().step(action)


class IntegerBox(Float64Bounds):
    action_space = spaces.Box(0, 7, (2,), np.int64)


class Shifted(Float64Bounds):
    action_space = spaces.Discrete(3, start=-1)


class ShiftedMulti(Float64Bounds):
    action_space = spaces.MultiDiscrete([3, 2], start=[1, -5])


class ArrayReward(Base):
    def reward(self, action: Any) -> Any:
        return np.array([0.5])


class NestedReward(Base):
    def reward(self, action: Any) -> Any:
        return np.full((1, 1), 2, np.int32)


class TwoRewards(Base):
    def reward(self, action: Any) -> Any:
        return np.array([0.5, 1.0])


class NoReward(Base):
    def reward(self, action: Any) -> Any:
        return None


class NaNReward(Base):
    def reward(self, action: Any) -> Any:
        return float("nan")


class Bits(Base):
    observation_space = spaces.Box(0, 1, (10, 10, 4), bool)

    def observe(self) -> Any:
        super().observe()
        return self.np_random.random((10, 10, 4)) < 0.5


class BitsInDict(Base):
    observation_space = spaces.Dict({"bits": spaces.Box(0, 1, (4,), bool), "x": spaces.Box(-1, 1, (2,), np.float64)})

    def observe(self) -> Any:
        super().observe()
        return {"bits": self.np_random.random(4) < 0.5, "x": self.numbers[:2].astype(np.float64)}


class Words(Base):
    observation_space = spaces.Box(0, 60_000, (3,), np.uint16)

    def observe(self) -> Any:
        return (1 + super().observe() * 1_000 + 1_000).astype(np.uint16)


class Halves(Base):
    observation_space = spaces.Box(-1, 1, (3,), np.float16)

    def observe(self) -> Any:
        return super().observe().astype(np.float16)


class WrongShape(Base):
    def observe(self) -> Any:
        super().observe()
        return np.zeros(4, np.float32)


class NoObservation(Base):
    def observe(self) -> Any:
        super().observe()


class FloatsForBytes(Base):
    observation_space = spaces.Box(0, 255, (3,), np.uint8)


class FailingStep(Base):
    error: BaseException = RuntimeError("no power")
    fails_at = 12

    def step(self, action: Any) -> Any:
        if self.steps + 1 >= self.fails_at:
            raise self.error
        return super().step(action)


class FailingReset(Base):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        raise MyError("cannot reach\nthe simulator")


class FailingConstructor(Base):
    def __init__(self) -> None:
        raise MyError


class FailingClose(Base):
    def close(self) -> None:
        raise MyError("still busy")


class FailingRenderer(Base):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> Any:
        raise MyError("an OpenGL platform library has not been loaded\nX11: no display")


class BlindRenderer(FailingRenderer):
    def render(self) -> Any:
        return None


class Renderer(FailingRenderer):
    picture: Any = None

    def render(self) -> Any:
        if isinstance(self.picture, BaseException):
            raise self.picture
        return self.picture


class Endless(Base):
    length = np.inf


class OldReset(Base):
    def reset(self) -> Any:  # type: ignore[override]
        self.steps = 0
        return self.observe()


class OldResult(Base):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class OldStep(Base):
    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, truncated, info


class OddInfo(Base):
    """Entries of `info` with other shapes in each step, and a success in an array."""

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"path": np.zeros((self.steps, 2)), "is_success": np.array([True])}


class NoInfo(Base):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], None


class ArrayEnds(Base):
    def step(self, action: Any) -> Any:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, np.array([False]), np.array([truncated]), info


class TupleActions(Base):
    action_space = spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (2,))))


class DictActions(Base):
    action_space = spaces.Dict({"gas": spaces.Box(0, 1, (1,)), "gear": spaces.Discrete(3)})


class SameArray(Base):
    """Every step returns the same array with other numbers."""

    def observe(self) -> Any:
        if not hasattr(self, "array"):
            self.array = np.zeros(3, np.float32)
        self.array[:] = super().observe()
        return self.array


class RandomSpaces(Base):
    def __init__(self) -> None:
        self.action_space = spaces.Box(-1, np.random.default_rng().random(1).astype(np.float32), (1,))


class OwnSeed(Base):
    """Draws from a generator that no seed reaches."""

    def observe(self) -> Any:
        self.numbers = np.random.default_rng().uniform(-1, 1, 3).astype(np.float32)
        return self.numbers


class SharedSeed(Base):
    """Seeds the generator of the whole process, so that other copies draw from it as well."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        random.seed(seed)
        return super().reset(seed=seed, options=options)

    def observe(self) -> Any:
        self.numbers = np.array([random.uniform(-1, 1) for _ in range(3)], np.float32)
        return self.numbers


class KeepsState(Base):
    """The first number counts the episodes."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episodes += 1
        return super().reset(seed=seed, options=options)

    def observe(self) -> Any:
        numbers = super().observe()
        numbers[0] = min(self.episodes / 1_000, 1)
        return numbers


class OtherMask(Base):
    observation_space = spaces.Dict({"x": spaces.Box(-1, 1, (3,)), "mask": spaces.Box(0, 1, (2,), np.int8)})

    def observe(self) -> Any:
        return {"x": super().observe(), "mask": np.array([1, self.numbers[0] > 0], np.int8)}


class NoLegalAction(Base):
    observation_space = spaces.Dict({"x": spaces.Box(-1, 1, (3,)), "action_mask": spaces.Box(0, 1, (2,), np.int8)})

    def observe(self) -> Any:
        return {"x": super().observe(), "action_mask": np.full(2, self.numbers[0] > 0, np.int8)}


class MaskInInfo(Base):
    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], {"action_mask": np.ones(2, np.int8)}


class OutOfBounds(Base):
    def observe(self) -> Any:
        return super().observe() * 5


class NaNObservation(Base):
    def observe(self) -> Any:
        return super().observe() * np.nan


class Doubles(Base):
    def observe(self) -> Any:
        return super().observe().astype(np.float64)


class ChangingSpaces(Base):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.action_space = spaces.Discrete(3)
        return super().reset(seed=seed)


class FailingSpace(Base):
    @property
    def observation_space(self) -> Any:
        raise MyError("not connected")


class Pieces(Base):
    """Dict within a dict, and a tuple, whose entries a test replaces."""

    observation_space = spaces.Dict(
        {
            "pose": spaces.Dict({"x": spaces.Box(-1, 1, (3,))}),
            "goals": spaces.Tuple((spaces.Discrete(4), spaces.Box(-1, 1, (2,), np.float64))),
            "gears": spaces.MultiDiscrete([3, 2]),
        }
    )
    changes: Any = {}  # noqa: RUF012

    def observe(self) -> Any:
        entries = {"pose": {"x": super().observe()}, "goals": (3, np.ones(2)), "gears": np.array([2, 1])}
        return {key: value for key, value in (entries | self.changes).items() if value is not Ellipsis}


class Place(Base):
    observation_space = spaces.Discrete(5)
    place: Any = 4

    def observe(self) -> Any:
        super().observe()
        return self.place


class HugeNumbers(Base):
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def observe(self) -> Any:
        return super().observe().astype(np.float64) + 1e200


class NoNumbers(Base):
    observation_space = spaces.Box(-1, 1, (0,))


class NoEntries(Base):
    observation_space = spaces.Tuple(())


class NoAction(Base):
    action_space = spaces.Box(-1, 1, (0,))


class BitActions(Float64Bounds):
    action_space = spaces.Box(0, 1, (2,), bool)


class HugeBounds(Float64Bounds):
    action_space = spaces.Box(-1e300, 1e300, (1,), np.float64)


class OtherByteOrder(Base):
    observation_space = spaces.Box(-1, 1, (3,), np.dtype(">f4"))  # type: ignore[arg-type]

    def observe(self) -> Any:
        return super().observe().astype(">f4")


class LongDoubles(Base):
    observation_space = spaces.Box(-1, 1, (3,), np.longdouble)

    def observe(self) -> Any:
        return super().observe().astype(np.longdouble)


class ChangesAction(Base):
    """Overwrites the array of the action, as clipping or scaling in place does."""

    action_space = spaces.Box(-1, 1, (2,))

    def step(self, action: Any) -> Any:
        action *= 7
        return super().step(action)


class GradientReward(Base):
    def reward(self, action: Any) -> Any:
        return torch.ones((), requires_grad=True)


class CleverReward(gymnasium.RewardWrapper[Any, Any]):
    """A wrapper that changes rewards."""

    def reward(self, reward: Any) -> float:
        return 100 - float(reward)


def no_wrapper(env: Any) -> None:
    """Forget to return the environment."""


class FailingWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        raise MyError("of a wrapper")


class OwnStatistics(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Running statistics as many repositories have them."""

    def __init__(self, env: Any, fixed: bool = False) -> None:
        super().__init__(env)
        self.fixed = fixed
        self.obs_rms = gymnasium.wrappers.utils.RunningMeanStd(shape=(3,))

    def observation(self, observation: Any) -> Any:
        if not self.fixed:
            self.obs_rms.update(observation[None])
        return (observation - self.obs_rms.mean).astype(np.float32)


def make(kind: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    env: gymnasium.Env[Any, Any] = globals()[kind](**kwargs)
    return env


def named_entry(name: str) -> gymnasium.Env[Any, Any]:
    """Return an environment whose observation is a dict with one entry of this name."""
    space = spaces.Dict({name: spaces.Box(-1, 1, (3,))})
    return gymnasium.wrappers.TransformObservation(Base(), lambda obs: {name: obs}, space)


def normalized(fixed: bool) -> gymnasium.Env[Any, Any]:
    env = gymnasium.wrappers.NormalizeObservation(Base())
    env.update_running_mean = not fixed
    return env


def action_of(obs: Any) -> int:
    """Act as a teacher of two discrete actions."""
    if isinstance(obs, dict):
        obs = obs["x"] if "x" in obs else obs["pose.x"]
    return int(np.asarray(obs, np.float32).ravel()[0] > 0)


def teacher() -> Any:
    return action_of


def zeros(spec: Any) -> Any:
    size = len(spec.head.nvec) or len(spec.head.low)
    return lambda obs: np.zeros(size, int if spec.head.discrete else np.float32)
