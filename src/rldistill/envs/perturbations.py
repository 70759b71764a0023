"""Environments whose physics are other than they were."""

from __future__ import annotations

from functools import reduce
from typing import Any

import gymnasium
import numpy as np

from rldistill.core.errors import ConfigError


class ChangedPhysics(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An attribute of the bare environment, changed once and for all.

    Args:
        env: the environment.
        attribute: its name, with dots where it is an attribute of an attribute (`model.opt.gravity`).
        factor: what it is multiplied with; each number of it, where it is an array.
        value: what takes its place, if anything does.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], attribute: str, factor: float = 1.0, value: float | bool | None = None
    ) -> None:
        super().__init__(env)
        if not has_number(env, attribute):
            raise ConfigError(f"env.wrappers: {type(env.unwrapped).__name__} has no number {attribute} to change")
        *parents, last = attribute.split(".")
        holder: Any = reduce(getattr, parents, env.unwrapped)
        setattr(holder, last, getattr(holder, last) * factor if value is None else value)


def has_number(env: gymnasium.Env[Any, Any], attribute: str) -> bool:
    """Whether the bare environment has this attribute, and it is a number or an array of them."""
    try:
        found = reduce(getattr, attribute.split("."), env.unwrapped)
    except AttributeError:
        return False
    return isinstance(found, bool | int | float | np.number | np.ndarray)
