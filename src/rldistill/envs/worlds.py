"""Arguments and attributes of an environment that each episode draws from its seed, or that are changed permanently."""

import inspect
import operator
from collections.abc import Callable, Mapping
from copy import copy
from functools import reduce
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator

from rldistill.core.errors import ConfigError, RLDistillError, did_you_mean, short_repr
from rldistill.core.worlds import Choice, Range
from rldistill.envs.wrappers import Env

WORLD = 2
NEXT_SEEDS = 3
"""Purposes in the seeds of generators, so that a world shares no draw with its episode."""
DERIVED: dict[str, tuple[Callable[[float, float], float], str, str]] = {
    "total_mass": (operator.add, "masspole", "masscart"),
    "polemass_length": (operator.mul, "masspole", "length"),
}
"""Attributes that CartPole computes only once, from two others."""


class SampledWorlds(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Innermost wrapper that draws a world for each episode, from the seed of the episode alone.

    Parameters that are keyword arguments of the environment make it again; others are attributes of the bare
    environment, with dots for nested ones. A number replaces a number, and multiplies an array.

    Args:
        make: Function that makes the environment with keyword arguments.
        worlds: Ranges and choices by the name of the parameter.

    Attributes:
        world: Parameters of the current episode.
        num_parameters: Number of parameters; 0 if some are text.
    """

    def __init__(self, make: Callable[..., Env], worlds: Mapping[str, Range | Choice]) -> None:
        super().__init__(make())
        # Those of the first environment, since a seed of the action space would be lost with an environment.
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        self.world: dict[str, Any] = {}
        self._seeds = np.random.default_rng()
        self._make, self._worlds = make, worlds
        has_text = any(
            isinstance(value, str) for own in worlds.values() if isinstance(own, Choice) for value in own.values
        )
        self.num_parameters = 0 if has_text else len(worlds)
        arguments, bare = _arguments(self.env), self.env.unwrapped
        self._arguments = [name for name in worlds if name in arguments]
        self._first: dict[str, Any] = {}
        for name, own in worlds.items():
            if name == "render_mode":
                raise ConfigError("env.worlds.render_mode: rendering is not a part of the world. Remove the key.")
            if name in arguments:
                self._try_argument(name, own)
            elif has_number(bare, name):
                if text := [value for value in _extremes(own) if isinstance(value, str)]:
                    raise ConfigError(f"env.worlds.{name}: found {short_repr(text[0])}. Use numbers.")
                self._first[name] = copy(attribute_of(bare, name))  # MuJoCo returns a view of its memory
            else:
                known = [*arguments, *(key for key in vars(bare) if has_number(bare, key))]
                raise ConfigError(
                    f"env.worlds: {type(bare).__name__} has neither an argument nor a number {name!r}."
                    f"{did_you_mean(name, known)} Name another parameter."
                )

    def _try_argument(self, name: str, parameter: Range | Choice) -> None:
        """Raise ConfigError if the environment refuses the extremes of an argument, or has other spaces with them."""
        for value in _extremes(parameter):
            try:
                env = self._make(**{name: value})
            except RLDistillError as error:
                raise ConfigError(f"env.worlds.{name}: {short_repr(value)} is refused: {error}") from None
            if (env.observation_space, env.action_space) != (self.observation_space, self.action_space):
                raise ConfigError(f"env.worlds.{name}: {value!r} changes the spaces. Use values that keep them.")
            env.close()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a world and begin an episode in it; without a seed, the next seed follows from the last one."""
        if seed is None:
            seed = int(self._seeds.integers(2**31))
        else:
            self._seeds = np.random.default_rng([seed, NEXT_SEEDS])
        rng = np.random.default_rng([seed, WORLD])
        self.world = {name: _draw(own, rng) for name, own in self._worlds.items()}
        if self._arguments:
            self.env.close()
            self.env = self._make(**{name: self.world[name] for name in self._arguments})
        bare: Any = self.env.unwrapped
        for name, first in self._first.items():
            value = self.world[name]
            set_attribute(bare, name, first * value if isinstance(first, np.ndarray) else value)
        for name, (operation, *parts) in DERIVED.items():
            if self._first.keys() & {*parts} and all(hasattr(bare, key) for key in (name, *parts)):
                setattr(bare, name, operation(*(getattr(bare, part) for part in parts)))
        return self.env.reset(seed=seed, options=options)


def _extremes(parameter: Range | Choice) -> tuple[Any, ...]:
    """Return the values of a choice, or both ends of a range, just within, since an environment may exclude them."""
    if isinstance(parameter, Choice):
        return parameter.values
    return tuple(parameter[0] + share * (parameter[1] - parameter[0]) for share in (1e-6, 1 - 1e-6))


def _draw(parameter: Range | Choice, rng: np.random.Generator) -> Any:
    if isinstance(parameter, Choice):
        return parameter.values[rng.integers(len(parameter.values))]
    return float(rng.uniform(*parameter))


def _arguments(env: Env) -> list[str]:
    """Return the keyword arguments of an environment: those of the function or class that makes it."""
    creators: list[Any] = [type(env.unwrapped)]
    if env.spec is not None and env.spec.entry_point is not None:
        entry: Any = env.spec.entry_point
        creators.insert(0, load_env_creator(entry) if isinstance(entry, str) else entry)
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    found = (parameter for creator in creators for parameter in inspect.signature(creator).parameters.values())
    return [*dict.fromkeys(parameter.name for parameter in found if parameter.kind in named)]


class ChangedPhysics(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that changes an attribute of the bare environment permanently.

    Args:
        env: The environment.
        attribute: Name of the attribute, with dots for nested ones (`model.opt.gravity`).
        factor: Factor of the number or array.
        value: New value, if there is one, in place of the product.
    """

    def __init__(self, env: Env, attribute: str, factor: float = 1.0, value: float | bool | None = None) -> None:
        super().__init__(env)
        if not has_number(env, attribute):
            raise ConfigError(
                f"env.wrappers: {type(env.unwrapped).__name__} has no number {attribute}. Name another attribute."
            )
        set_attribute(env, attribute, attribute_of(env, attribute) * factor if value is None else value)


def attribute_of(env: Env, attribute: str) -> Any:
    """Return an attribute of the bare environment."""
    return reduce(getattr, attribute.split("."), env.unwrapped)


def set_attribute(env: Env, attribute: str, value: Any) -> None:
    """Change an attribute of the bare environment."""
    *parents, last = attribute.split(".")
    setattr(reduce(getattr, parents, env.unwrapped), last, value)


def has_number(env: Env, attribute: str) -> bool:
    """Return True if this attribute of the bare environment is a number or an array."""
    try:
        value = attribute_of(env, attribute)
    except AttributeError:
        return False
    return isinstance(value, bool | int | float | np.number | np.ndarray)
