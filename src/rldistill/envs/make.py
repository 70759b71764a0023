"""Construction of one environment with its wrappers."""

import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium
import gymnasium.wrappers
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from rldistill.core.errors import (
    USER_ERRORS,
    ConfigError,
    MissingExtraError,
    RLDistillError,
    did_you_mean,
    error_text,
    failure,
    short_repr,
)
from rldistill.core.fields import add_working_directory, import_name
from rldistill.core.spec import TEACHER_VIEWS, EnvConfig, Wrapper
from rldistill.envs import wrappers as own_wrappers
from rldistill.envs.agent_views import AGENT_VIEWS, AgentViews, agent_views_of
from rldistill.envs.atari import register_atari
from rldistill.envs.checked import CheckedEnv, RewardMeter
from rldistill.envs.entries import FlatDict
from rldistill.envs.multi_agent import is_multi_agent, make_joint_env, pettingzoo_constructor
from rldistill.envs.views import NamedViews, Tap, TwoViews
from rldistill.envs.worlds import SampledWorlds
from rldistill.envs.wrappers import Env

THIRD_PARTY = {
    "highway_env": (
        r"(exit|highway|intersection|lane-keeping|merge|parking|racetrack|roundabout|two-way|u-turn)(-\w+)*-v\d+",
        "rldistill[driving]",
    ),
    "gym_anm": (r"ANM6Easy-v0", "rldistill[resources]"),
    "minigrid": (r"(MiniGrid|BabyAI)-.*", "minigrid"),
    "miniworld": (r"MiniWorld-.*", "miniworld"),
    "gymnasium_robotics": (
        r"(Adroit|AntMaze|Fetch|FrankaKitchen|HandManipulate|HandReach|MaMuJoCo|PointMaze).*", "gymnasium-robotics",
    ),
    "panda_gym": (r"Panda.*", "panda-gym"),
    "mo_gymnasium": (r"mo-.*", "mo-gymnasium"),
    "metaworld": (r"Meta-World/.*", "rldistill[robots]"),
    "flappy_bird_gymnasium": (r"FlappyBird-.*", "flappy-bird-gymnasium"),
    "pybullet_envs_gymnasium": (r".*Bullet(Env)?-.*", "pybullet-envs-gymnasium"),
}  # fmt: skip
"""Ids that Gymnasium does not register before a module is imported, and the package to install."""
OWN_WRAPPERS = (
    "TimeFeature", "History", "FrameSkip", "MaskVelocity", "ActionSmoothing", "StackFrames", "ChannelsFirst",
    "PadObservation", "WorldParameters", "LastAction",
)  # fmt: skip
# `vector` is a module, not a wrapper.
GYMNASIUM_WRAPPERS = tuple(name for name in gymnasium.wrappers.__all__ if name != "vector")


def wrapper_class(wrapper: Wrapper) -> Callable[..., Env]:
    """Return the class of a wrapper; raise ConfigError, with the nearest name, if there is none."""
    name = wrapper.name
    if name == TEACHER_VIEWS:
        return named_views
    if name == AGENT_VIEWS:
        return _agent_views
    if ":" in name:
        cls: Callable[..., Env] = import_name(name, "env.wrappers")
    elif name in OWN_WRAPPERS or name in GYMNASIUM_WRAPPERS:
        try:
            cls = getattr(own_wrappers if name in OWN_WRAPPERS else gymnasium.wrappers, name)
        except (ImportError, gymnasium.error.Error) as error:
            raise ConfigError(
                f"env.wrappers: {name} needs a package that is missing ({error_text(error)}). Install it."
            ) from error
    else:
        hint = did_you_mean(name, [*GYMNASIUM_WRAPPERS, *OWN_WRAPPERS, AGENT_VIEWS])
        raise ConfigError(f"env.wrappers: there is no {name!r} in gymnasium.wrappers.{hint}")
    return cls


def register(env_id: str) -> None:
    """Register the ids of Atari, and those of the known package that has `env_id`.

    Raises:
        ConfigError: The package is not installed, or cannot be imported.
    """
    register_atari()
    add_working_directory()  # for ids such as `module:Name-v0`
    for module, (ids, package) in THIRD_PARTY.items():
        if env_id in gymnasium.registry or not re.fullmatch(ids, env_id):
            continue
        if find_spec(module) is None:
            if package.startswith("rldistill["):
                raise MissingExtraError(env_id, package[len("rldistill[") : -1])
            raise ConfigError(f"env.id: {env_id} needs another package. Install it: pip install {package}")
        try:
            gymnasium.register_envs(importlib.import_module(module))
        except USER_ERRORS as error:
            raise ConfigError(f"env.id: {env_id}: {module} cannot be imported ({failure(error)}).") from error


def nearest_id(env_id: str) -> str:
    """Return ` Did you mean 'x'?` for an unknown id; for an Atari game, the id of ale-py's vector environment."""
    game = f"ALE/{env_id}-v5"
    return f" Did you mean {game!r}?" if game in gymnasium.registry else did_you_mean(env_id, gymnasium.registry)


def make_env(config: EnvConfig, **kwargs: Any) -> CheckedEnv:
    """Return one environment with its wrappers; `kwargs` override those of the configuration.

    Raise ConfigError for an unknown id and for refused arguments, MissingExtraError for a package that is missing.
    """
    register(config.id)
    spec: EnvSpec | str = config.id
    # `module:function` comes from the user alone: the ids in datasets and policies are compared, never made.
    wrappers = config.wrappers
    if is_multi_agent(config.id):
        inner = tuple(wrapper for wrapper in wrappers if wrapper.name.startswith("supersuit:"))
        wrappers = tuple(wrapper for wrapper in wrappers if wrapper not in inner)
        spec = EnvSpec(config.id, entry_point=partial(make_joint_env, pettingzoo_constructor(config.id), inner))
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", config.id):
        function = import_name(config.id, "env.id")
        if not callable(function):
            raise ConfigError(f"env.id: {config.id}: expected a function, found {type(function).__name__}.")
        spec = EnvSpec(config.id, entry_point=function)
    build = partial(_construct, config, spec, kwargs)
    env: Env = SampledWorlds(build, config.worlds) if config.worlds else build()
    for name in ("observation_space", "action_space"):
        try:
            found = getattr(env, name, None)
        except USER_ERRORS as error:  # a property of the user's
            raise ConfigError(f"env.id: {config.id}: its {name} failed: {failure(error)}.") from error
        if not isinstance(found, spaces.Space):
            raise ConfigError(
                f"env.id: {config.id}: its {name} is {short_repr(found)}. Set it to a space of gymnasium.spaces."
            )
    meter = RewardMeter(env) if wrappers else None
    env = _wrap(meter or env, wrappers)
    for wrapper in chain_of(env):
        if isinstance(wrapper, gymnasium.wrappers.NormalizeObservation) and wrapper.update_running_mean:
            raise ConfigError(
                "env.wrappers: NormalizeObservation collects its statistics anew in each copy of the environment, so "
                "that no two policies observe the same numbers. Fix them in a function (env.id: module:function): set "
                "obs_rms.mean and obs_rms.var of the wrapper, then update_running_mean = False; or use the "
                "teacher's own normalizer (vecnormalize)."
            )
    if config.views is None:
        return CheckedEnv(_flatten(env, config.id), config.id, meter)
    taps = Tap(env), Tap(env)
    sides = zip(taps, (config.views.student, config.views.teacher), strict=True)
    student, teacher = (_flatten(_wrap(tap, wrappers), config.id) for tap, wrappers in sides)
    return CheckedEnv(TwoViews(env, taps, (student, teacher)), config.id, meter)


def named_views(env: Env, **views: Sequence[Mapping[str, Any]]) -> NamedViews:
    """Return an environment with a view for each teacher, given its wrappers by name."""
    taps = {name: Tap(env) for name in views}
    own = {name: _wrap(taps[name], [Wrapper(**wrapper) for wrapper in views[name]]) for name in views}
    return NamedViews(env, [*taps.values()], own)


def _agent_views(env: Env, /, **views: Any) -> AgentViews:
    return agent_views_of(env, _wrap, views)


def _construct(config: EnvConfig, spec: EnvSpec | str, kwargs: Mapping[str, Any], **world: Any) -> Env:
    """Return the environment without wrappers, in a world."""
    # The boundary checks each step, and in the words of this package; Gymnasium's checker only warns at the first.
    arguments = {"disable_env_checker": True, **config.kwargs, **kwargs, **world}
    try:
        try:
            return gymnasium.make(spec, **arguments)
        except TypeError:
            if (converted := _with_tuples(arguments)) == arguments:
                raise
            with suppress(*USER_ERRORS):  # the error of the arguments as they are is the one to show
                return gymnasium.make(spec, **converted)
            raise
    except gymnasium.error.DependencyNotInstalled as error:
        extra = "box2d" if "box2d" in str(error).lower() else "mujoco"
        raise MissingExtraError(config.id, extra) from error
    except RLDistillError:
        raise
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        reason = str(error).partition(" Did you mean")[0].rstrip(".")  # without the suggestion of Gymnasium
        if config.id in gymnasium.registry:
            hint = " Install it." if isinstance(error, ModuleNotFoundError) else ""
        else:
            hint = nearest_id(config.id)
        raise ConfigError(f"env.id: {config.id!r}: {reason}.{hint}") from None
    except USER_ERRORS as error:  # from third-party code
        if isinstance(error, TypeError) and "inherit from the gymnasium.Env" in str(error):
            raise ConfigError(
                f"env.id: {config.id} returns no gymnasium.Env. Return one, or use pettingzoo:{config.id} for an "
                "environment of PettingZoo."
            ) from None
        if isinstance(error, TypeError) and config.kwargs:
            raise ConfigError(f"env.kwargs: {config.id} does not accept {config.kwargs}: {error}") from None
        raise ConfigError(f"env.id: {config.id} cannot be made: {failure(error)}.") from error


def _with_tuples(value: Any) -> Any:
    """Return arguments with tuples in place of lists: run files have none, and some environments require them."""
    if isinstance(value, Mapping):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return tuple(_with_tuples(entry) for entry in value) if isinstance(value, list) else value


def chain_of(env: Env) -> Iterator[Env]:
    """Yield an environment and, of a wrapper, all environments within it."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env


def _wrap(env: Env, wrappers: Sequence[Wrapper]) -> Env:
    for wrapper in wrappers:
        # YAML has no tuples, which some wrappers require
        kwargs = {key: tuple(value) if isinstance(value, list) else value for key, value in wrapper.kwargs.items()}
        cls = wrapper_class(wrapper)
        try:
            env = cls(env, **kwargs)
        except (AssertionError, TypeError, ValueError, gymnasium.error.Error) as error:
            if isinstance(error, gymnasium.error.DependencyNotInstalled) and "opencv" in str(error):
                raise MissingExtraError(f"env.wrappers: {wrapper.name}", "opencv") from None
            raise ConfigError(f"env.wrappers: {wrapper.name} does not accept {wrapper.kwargs}: {error}") from error
        except RLDistillError:
            raise
        except USER_ERRORS as error:
            raise ConfigError(f"env.wrappers: {wrapper.name} failed: {failure(error)}.") from error
        if not isinstance(env, gymnasium.Env):
            raise ConfigError(
                f"env.wrappers: {wrapper.name} returns a {type(env).__name__}, expected a gymnasium.Env. Return one."
            )
    return env


def _flatten(env: Env, name: str) -> Env:
    """Wrap an environment with action masks, dict or tuple observations so that an observation is one array."""
    if env.has_wrapper_attr("action_masks") and callable(env.get_wrapper_attr("action_masks")):
        env = own_wrappers.ActionMask(env)
    return FlatDict(env, name) if isinstance(env.observation_space, spaces.Dict | spaces.Tuple) else env
