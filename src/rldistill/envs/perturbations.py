"""Environments with changed physics."""

from functools import reduce
from typing import Any

import gymnasium
import numpy as np

from rldistill.core.errors import ConfigError
from rldistill.envs.wrappers import Env


class ChangedPhysics(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that changes an attribute of the bare environment, for good.

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
