"""One environment: which it is, how it is built, what it shows and takes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import gymnasium
import gymnasium.wrappers
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from rldistill.core.errors import ConfigError, MissingExtraError, did_you_mean
from rldistill.core.heads import (
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    MultiCategoricalHead,
)
from rldistill.core.policy import Policy
from rldistill.core.spec import FramePipeline, ObsPart, PolicySpec, Views, Wrapper
from rldistill.envs import wrappers as views
from rldistill.envs.atari import DEFAULTS, is_atari, make_atari, preprocessed_id, preprocessing, register_atari
from rldistill.envs.views import SIDES, ObservationViews, Side, Tap, TwoViews
from rldistill.io.imports import import_name, look_here

DRIVING = r"(exit|highway|intersection|lane-keeping|merge|parking|racetrack|roundabout|two-way|u-turn)(-\w+)*-v\d+"
"""Ids of highway-env, which Gymnasium knows only once it is imported."""
VIEWS = ("TimeFeature", "History", "FrameSkip", "MaskVelocity", "ActionSmoothing", "StackFrames", "ChannelsFirst")


@dataclass(frozen=True)
class EnvConfig:
    """Which environment.

    Attributes:
        id: any Gymnasium id, or `module:function`, which gives a `gymnasium.Env`.
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

    def adapted_to(self, teacher: Policy) -> EnvConfig:
        """The environment as the teacher needs it.

        That is with the keyword arguments that it was trained with, where none are given here, and with its wrappers
        around it, unless they are there already; pictures are turned round where it takes them with channels first.
        A bare `GameNoFrameskip-v4` becomes `ALE/Game-v5`, without sticky actions, for one that takes its frames.
        """
        kwargs = {**dict(teacher.spec.env_kwargs), **self.kwargs}
        if kwargs != self.kwargs:
            return replace(self, kwargs=kwargs).adapted_to(teacher)
        game, frames = preprocessed_id(self.id), teacher.spec.frames
        if game is not None and frames is not None and not self.wrappers and self.views is None:
            return replace(self, id=game, kwargs={**preprocessing(frames), **self.kwargs}).adapted_to(teacher)
        view = teacher.spec.view
        if CHANNELS_FIRST not in view and teacher.spec.turned_round(spec_from_env(self.view_of("teacher"))):
            view = (*view, CHANNELS_FIRST)
        around = self.view_of("teacher").wrappers
        if around[len(around) - len(view) :] == view:
            return self
        if self.views is None:
            return replace(self, wrappers=self.wrappers + view)
        return replace(self, views=replace(self.views, teacher=self.views.teacher + view))


CHANNELS_FIRST = Wrapper("ChannelsFirst")


def observation_views(config: EnvConfig) -> ObservationViews:
    """What each side sees of the environment's observations."""
    student, teacher = (spec_from_env(config.view_of(side)) for side in SIDES)
    return ObservationViews(student, teacher, packed=config.views is not None)


def resolve(wrapper: Wrapper) -> Callable[..., gymnasium.Env[Any, Any]]:
    """The class of a wrapper; raises ConfigError, with the nearest name, if there is none."""
    name = wrapper.name
    if ":" in name:
        found = import_name(name, "env.wrappers")
    elif name in VIEWS or name in gymnasium.wrappers.__all__:
        found = getattr(views if name in VIEWS else gymnasium.wrappers, name)
    else:
        hint = did_you_mean(name, [*gymnasium.wrappers.__all__, *VIEWS])
        raise ConfigError(f"env.wrappers: there is no {name!r} in gymnasium.wrappers.{hint}")
    wrap: Callable[..., gymnasium.Env[Any, Any]] = found
    return wrap


def make_env(config: EnvConfig, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """One environment, wrapped, or a ConfigError with the nearest id if there is none of that name."""
    register_atari()
    look_here()  # for ids such as `module:Name-v0`
    if re.fullmatch(DRIVING, config.id) and config.id not in gymnasium.registry:
        _register_driving(config.id)
    known = _own(config.id) or config.id
    try:
        env = gymnasium.make(known, **{**config.kwargs, **kwargs})
    except gymnasium.error.DependencyNotInstalled as error:
        extra = "box2d" if "box2d" in str(error).lower() else "mujoco"
        raise MissingExtraError(config.id, extra) from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ConfigError(f"env.id: {config.id!r}: {error}.{did_you_mean(config.id, gymnasium.registry)}") from None
    except Exception as error:  # of whoever wrote the environment
        if isinstance(error, TypeError) and config.kwargs:
            raise ConfigError(f"env.kwargs: {config.id} does not take {config.kwargs}: {error}") from None
        raise ConfigError(f"env.id: {config.id} cannot be made: {type(error).__name__}: {error}") from error
    env = _wrapped(env, config.wrappers)
    if config.views is None:
        return _as_array(env)
    taps = Tap(env), Tap(env)
    both = zip(taps, (config.views.student, config.views.teacher), strict=True)
    student, teacher = (_as_array(_wrapped(tap, wrappers)) for tap, wrappers in both)
    return TwoViews(env, taps, (student, teacher))


def _register_driving(env_id: str) -> None:
    try:
        import highway_env
    except ImportError:
        raise MissingExtraError(env_id, "driving") from None
    gymnasium.register_envs(highway_env)


def _own(env_id: str) -> EnvSpec | None:
    """What makes the environment of `module:function`; None of any other id.

    Only a person's own word comes here: what a dataset or a policy tells of its environment is compared, never made.
    """
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", env_id) is None:
        return None
    function = import_name(env_id, "env.id")
    if not callable(function):
        raise ConfigError(f"env.id: {env_id}: expected a function, found {type(function).__name__}")
    return EnvSpec(env_id, entry_point=function)


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
    if env.has_wrapper_attr("action_masks") and callable(env.get_wrapper_attr("action_masks")):
        env = views.ActionMask(env)
    return views.FlatDict(env) if isinstance(env.observation_space, spaces.Dict) else env


def refuse_wrappers(config: EnvConfig) -> None:
    """Raise ConfigError for wrappers or views around what ale-py's own vector environment plays."""
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
        refuse_wrappers(config)
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
    if isinstance(space, spaces.MultiDiscrete) and not np.any(space.start):
        return ObsPart(space.shape, "int64", tuple(int(n) for n in space.nvec.ravel()))
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return ObsPart(space.shape, str(space.dtype))
    raise ConfigError(
        f"env.id: {env_id} has observations {space}; Box, Discrete, MultiDiscrete, MultiBinary and a Dict of these are "
        "supported"
    )


def _neutral_head(env_id: str, space: spaces.Space[Any]) -> ActionHead:
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        raise ConfigError(f"env.id: {env_id} has actions {space}; those that start at 0 are supported")
    if isinstance(space, spaces.Discrete):
        return CategoricalHead((int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategoricalHead(tuple(int(n) for n in space.nvec.ravel()))
    if isinstance(space, spaces.MultiBinary):
        return BernoulliHead((math.prod(space.shape),))
    if isinstance(space, spaces.Box):
        low, high = (tuple(end.ravel().tolist()) for end in (space.low, space.high))
        return DeterministicHead(low=low, high=high)
    raise ConfigError(f"env.id: {env_id} has actions of type {type(space).__name__}, which is not supported")
