"""Vector environments in which every episode has a seed of its own."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal

import gymnasium
import gymnasium.wrappers
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from rldistill.envs import views
from rldistill.envs.atari import DEFAULTS, is_atari, make_atari, register_atari
from rldistill.envs.two_views import SIDES, Side, Sight, Tap, TwoViews
from rldistill.errors import ConfigError, MissingExtraError, did_you_mean
from rldistill.types import MASK, ActionHead, FramePipeline, ObsPart, Policy, PolicySpec, Views, Wrapper

VIEWS = ("TimeFeature", "History", "FrameSkip", "MaskVelocity", "ActionSmoothing", "StackFrames", "ChannelsFirst")


@dataclass(frozen=True)
class EnvConfig:
    """Which environment.

    Attributes:
        id: any Gymnasium id.
        kwargs: its keyword arguments.
        wrappers: what is wrapped around it, the innermost first.
        views: what else is wrapped around that for the teacher and for the student, where they see different things.
    """

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    wrappers: tuple[Wrapper, ...] = ()
    views: Views | None = None

    def view_of(self, side: Side) -> EnvConfig:
        """The environment as one side sees it."""
        if self.views is None:
            return self
        return replace(self, wrappers=self.wrappers + getattr(self.views, side), views=None)

    def seen_by(self, teacher: Policy) -> EnvConfig:
        """The environment with the wrappers that the teacher needs around it, unless they are there already."""
        view = teacher.spec.view
        around = self.view_of("teacher").wrappers
        if around[len(around) - len(view) :] == view:
            return self
        if self.views is None:
            return replace(self, wrappers=self.wrappers + view)
        return replace(self, views=replace(self.views, teacher=self.views.teacher + view))


def sight_of(config: EnvConfig) -> Sight:
    """What each side sees of the environment's observations."""
    student, teacher = (spec_from_env(config.view_of(side)) for side in SIDES)
    return Sight(student, teacher, packed=config.views is not None)


def resolve(wrapper: Wrapper) -> Callable[..., gymnasium.Env[Any, Any]]:
    """The class of a wrapper; raises ConfigError, with the nearest name, if there is none."""
    module, colon, name = wrapper.name.rpartition(":")
    try:
        place = importlib.import_module(module) if colon else views if name in VIEWS else gymnasium.wrappers
        found = getattr(place, name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"env.wrappers: {wrapper.name}: cannot be imported ({error})") from None
    except AttributeError:
        known = dir(importlib.import_module(module)) if colon else [*gymnasium.wrappers.__all__, *VIEWS]
        hint = did_you_mean(name, known)
        where = module if colon else "gymnasium.wrappers"
        raise ConfigError(f"env.wrappers: there is no {name!r} in {where}.{hint}") from None
    wrap: Callable[..., gymnasium.Env[Any, Any]] = found
    return wrap


@dataclass(frozen=True)
class Step:
    """What one step of all environments gave; `obs` already begins the next episode where one ended."""

    obs: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ended: NDArray[np.int64]
    last_obs: NDArray[Any]

    def final_obs(self, slot: int) -> NDArray[Any]:
        """The last observation of the episode that ended in `slot`."""
        last: NDArray[Any] = self.last_obs[int(np.flatnonzero(self.ended == slot)[0])]
        return last


class SeededVectorEnv:
    """A Gymnasium vector whose ended slots are reset, with their next episode's seed, before the next step."""

    def __init__(
        self,
        vector: VectorEnv[Any, Any, Any],
        seed_of: Callable[[int, int], int],
        rebuild: Callable[[], gymnasium.Env[Any, Any]] | None = None,
        idle: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    ) -> None:
        self.vector = vector
        self._idle = idle
        self._rebuild = rebuild
        self.num_envs = vector.num_envs
        self.single_observation_space = vector.single_observation_space
        self.single_action_space = vector.single_action_space
        self.episode = np.zeros(self.num_envs, np.int64)
        self._seed_of = seed_of
        self._actions: NDArray[Any] | None = None

    def reset(self) -> NDArray[Any]:
        return self._reset(np.ones(self.num_envs, bool))

    def send(self, actions: NDArray[Any]) -> None:
        """Begin a step. ale-py's emulators run in their own threads from here on."""
        if hasattr(self.vector, "send"):
            self.vector.send(actions)
        else:
            self._actions = actions

    def recv(self) -> Step:
        """Finish the step begun by `send`."""
        obs, reward, terminated, truncated, _ = (
            self.vector.recv()  # type: ignore[attr-defined]
            if self._actions is None
            else self.vector.step(self._actions)
        )
        done = terminated | truncated
        ended = np.flatnonzero(done)
        last_obs = obs[ended].copy()
        if len(ended):
            self.episode[ended] += 1
            obs = self._reset(done)
        return Step(obs, np.asarray(reward, np.float64), terminated, truncated, ended, last_obs)

    def step(self, actions: NDArray[Any]) -> Step:
        self.send(actions)
        return self.recv()

    def _reset(self, mask: NDArray[np.bool_]) -> NDArray[Any]:
        seeds: list[int | None] = [self._seed_of(slot, int(self.episode[slot])) for slot in range(self.num_envs)]
        if isinstance(self.vector, SyncVectorEnv):
            if self._rebuild is not None:
                self._renew(self.vector, mask, self._rebuild)
            obs, _ = self.vector.reset(seed=seeds, options={"reset_mask": mask.copy()})
        else:
            obs, _ = self.vector.reset(seed=np.array(seeds)[mask], options={"reset_mask": mask})  # type: ignore[arg-type]
        fresh: NDArray[Any] = obs.copy()
        return fresh

    @staticmethod
    def _renew(vector: SyncVectorEnv, mask: NDArray[np.bool_], rebuild: Callable[[], gymnasium.Env[Any, Any]]) -> None:
        envs = list(vector.envs)
        for slot in np.flatnonzero(mask):
            envs[slot].close()
            envs[slot] = rebuild()
        vector.envs = envs

    def replay(self, episodes: Sequence[int], actions: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Bring each slot to where it stands after `actions[slot]` of its episode `episodes[slot]`.

        All slots step together, so each one's reset is put off until just as many steps are left as it has actions.
        """
        self.episode[:] = episodes
        lengths = np.array([len(taken) for taken in actions])
        longest = int(lengths.max())
        obs = self.reset()
        for step in range(longest):
            late = lengths == longest - step
            if step and late.any():
                obs = self._reset(late)
            idle = (
                np.zeros_like(np.asarray(self.vector.action_space.sample())) if self._idle is None else self._idle(obs)
            )
            for slot in np.flatnonzero(lengths >= longest - step):
                idle[slot] = actions[int(slot)][step - longest + lengths[slot]]
            obs, _, terminated, truncated, _ = self.vector.step(idle)
            idle_ended = (terminated | truncated) & (lengths < longest - step)
            if idle_ended.any():
                obs = self._reset(idle_ended)
        if longest and (lengths == 0).any():
            obs = self._reset(lengths == 0)
        now: NDArray[Any] = obs.copy()
        return now

    def close(self) -> None:
        self.vector.close()


def make_vector_env(
    config: EnvConfig, num_envs: int, seed_of: Callable[[int, int], int], num_threads: int = 1
) -> SeededVectorEnv:
    """`num_envs` environments whose slot s plays its n-th episode with seed `seed_of(s, n)`."""
    if is_atari(config.id):
        _refuse_wrappers(config)
        return SeededVectorEnv(make_atari(config.id, num_envs, num_threads, config.kwargs), seed_of)
    build = partial(make_env, config)
    vector = SyncVectorEnv([build] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    sight, student = sight_of(config), config.view_of("student")

    def idle(obs: NDArray[Any]) -> NDArray[Any]:
        return first_legal(sight.of("student", obs), sight.student)

    rebuild = build if keeps_state_across_reset(student) else None
    return SeededVectorEnv(vector, seed_of, rebuild, idle if MASK in sight.student.entries else None)


def first_legal(obs: NDArray[Any], spec: PolicySpec) -> NDArray[np.int64]:
    """The first legal action of each observation of an environment that tells them."""
    at = 0
    for key, part in spec.parts:
        if key == MASK:
            break
        at += math.prod(part.shape)
    mask = obs[..., at : at + math.prod(spec.entries[MASK].shape)]
    chosen = [part.argmax(-1) for part in np.split(mask, np.cumsum(spec.head.nvec)[:-1], axis=-1)]
    return chosen[0] if len(chosen) == 1 else np.stack(chosen, -1)


def make_env(config: EnvConfig, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """One environment, wrapped, or a ConfigError with the nearest id if there is none of that name."""
    register_atari()
    try:
        env = gymnasium.make(config.id, **{**config.kwargs, **kwargs})
    except gymnasium.error.DependencyNotInstalled as error:
        extra = "box2d" if "box2d" in str(error).lower() else "mujoco"
        raise MissingExtraError(config.id, extra) from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ConfigError(f"env.id: {config.id!r}: {error}.{did_you_mean(config.id, gymnasium.registry)}") from None
    except TypeError as error:
        raise ConfigError(f"env.kwargs: {config.id} does not take {config.kwargs}: {error}") from None
    env = _wrapped(env, config.wrappers)
    if config.views is None:
        return _as_array(env)
    taps = Tap(env), Tap(env)
    both = zip(taps, (config.views.student, config.views.teacher), strict=True)
    student, teacher = (_as_array(_wrapped(tap, wrappers)) for tap, wrappers in both)
    return TwoViews(env, taps, (student, teacher))


def _wrapped(env: gymnasium.Env[Any, Any], wrappers: Sequence[Wrapper]) -> gymnasium.Env[Any, Any]:
    for wrapper in wrappers:
        wrap = resolve(wrapper)
        try:
            # YAML has no tuples, and some wrappers insist on them
            env = wrap(env, **{k: tuple(v) if isinstance(v, list) else v for k, v in wrapper.kwargs.items()})
        except (AssertionError, TypeError, ValueError, gymnasium.error.Error) as error:
            raise ConfigError(f"env.wrappers: {wrapper.name} does not take {wrapper.kwargs}: {error}") from None
    return env


def _as_array(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    if callable(getattr(env.unwrapped, "action_masks", None)):
        env = views.ActionMask(env)
    return views.FlatDict(env) if isinstance(env.observation_space, spaces.Dict) else env


def _refuse_wrappers(config: EnvConfig) -> None:
    if config.wrappers or config.views:
        game = config.id.removeprefix("ALE/").removesuffix("-v5")
        raise ConfigError(
            f"env.wrappers: {config.id} runs on ale-py's own vector environment, which takes no wrappers and no views; "
            f"use env.kwargs, or {game}NoFrameskip-v4 and AtariPreprocessing on Gymnasium's"
        )


@lru_cache
def spec_from_env(config: EnvConfig) -> PolicySpec:
    """What a policy for this environment takes and gives; heads are the neutral `categorical` or `deterministic`.

    Where there are two views, it is the student's.
    """
    config = config.view_of("student")
    if is_atari(config.id):
        _refuse_wrappers(config)
        settings = {**DEFAULTS, **config.kwargs}
        frames: FramePipeline | None = FramePipeline(
            settings["img_height"],
            settings["img_width"],
            settings["stack_num"],
            settings["frameskip"],
            settings["maxpool"],
            settings["grayscale"],
        )
        vector = make_atari(config.id, 1, 1, config.kwargs)
        obs_space, action_space = vector.single_observation_space, vector.single_action_space
        vector.close()
    else:
        env = make_env(config)
        frames, obs_space, action_space = _frames(env), env.observation_space, env.action_space
        if isinstance(env, views.FlatDict):
            obs_space = spaces.Dict(env.space)
        env.close()
    return replace(spec_from_spaces(config.id, obs_space, action_space), frames=frames)


def spec_from_spaces(env_id: str, obs_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> PolicySpec:
    """What a policy for these spaces takes and gives; raises ConfigError for those that are not supported."""
    head = _neutral_head(env_id, action_space)
    if isinstance(obs_space, spaces.Dict):
        return PolicySpec.of_parts(tuple((key, _part(env_id, inner)) for key, inner in obs_space.items()), head)
    part = _part(env_id, obs_space)
    return PolicySpec(part.shape, part.dtype, head, nvec=part.nvec)


def _frames(env: gymnasium.Env[Any, Any]) -> FramePipeline | None:
    """How frames become a stack of grey pictures; None for anything else, which is stored as it is."""
    space = env.observation_space
    if not isinstance(env, gymnasium.wrappers.FrameStackObservation) or not isinstance(space, spaces.Box):
        return None
    if space.dtype != np.uint8 or len(space.shape) != 3 or env.padding_type not in ("reset", "zero"):
        return None
    skip = env.spec.kwargs.get("frameskip", 1) if env.spec is not None else 1
    pooled, inner = False, env.env
    while isinstance(inner, gymnasium.Wrapper):
        if isinstance(inner, gymnasium.wrappers.AtariPreprocessing):
            skip, pooled = inner.frame_skip, inner.frame_skip > 1
        inner = inner.env
    padding: Literal["zero", "repeat"] = "zero" if env.padding_type == "zero" else "repeat"
    stack, height, width = space.shape
    return FramePipeline(
        height, width, stack, tuple(skip) if isinstance(skip, list | tuple) else skip, pooled, True, padding
    )


def _part(env_id: str, space: spaces.Space[Any]) -> ObsPart:
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return ObsPart((), "int64", (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return ObsPart(space.shape, "int64", tuple(int(n) for n in space.nvec.ravel()))
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return ObsPart(space.shape, str(space.dtype))
    raise ConfigError(
        f"env.id: {env_id} has observations {space}; Box, Discrete, MultiDiscrete, MultiBinary and a Dict of these are "
        "supported"
    )


def _neutral_head(env_id: str, space: spaces.Space[Any]) -> ActionHead:
    if isinstance(space, spaces.Discrete):
        return ActionHead("categorical", (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return ActionHead("multi_categorical", tuple(int(n) for n in space.nvec))
    if isinstance(space, spaces.MultiBinary):
        return ActionHead("bernoulli", (math.prod(space.shape),))
    if isinstance(space, spaces.Box):
        return ActionHead("deterministic", low=tuple(space.low.tolist()), high=tuple(space.high.tolist()))
    raise ConfigError(f"env.id: {env_id} has actions of type {type(space).__name__}, which is not supported")


# BipedalWalker shows it in about one of three pairs of episodes, so several are tried.
_CHECK_STEPS, _CHECK_EPISODES = 150, 6


@lru_cache
def keeps_state_across_reset(config: EnvConfig) -> bool:
    """Whether an episode differs from the same one in a fresh environment (BipedalWalker's does)."""
    used = make_env(config)
    used.action_space.seed(0)
    actions = [used.action_space.sample() for _ in range(_CHECK_STEPS)]
    spec = spec_from_env(config)
    masked = spec if MASK in spec.entries else None
    differs = False
    for seed in range(_CHECK_EPISODES):
        fresh = make_env(config)
        pairs = zip(_play(used, seed, actions, masked), _play(fresh, seed, actions, masked), strict=False)
        differs |= any(not np.array_equal(a, b) for a, b in pairs)
        fresh.close()
    used.close()
    return differs


def _play(env: gymnasium.Env[Any, Any], seed: int, actions: Sequence[Any], spec: PolicySpec | None) -> list[Any]:
    seen = [env.reset(seed=seed)[0]]
    for action in actions:
        obs, _, terminated, truncated, _ = env.step(action if spec is None else first_legal(seen[-1], spec))
        seen.append(obs)
        if terminated or truncated:
            break
    return seen
