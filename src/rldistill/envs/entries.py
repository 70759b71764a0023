"""Observations of several entries: dicts and tuples, also within each other."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rldistill.core.entries import find_entry, join_parts, named_values, walk
from rldistill.core.errors import ConfigError, SpecMismatchError, short_repr
from rldistill.core.spec import ObsPart, Parts, joined_layout
from rldistill.envs.checked import fitting_array, kind_of, obs_dtype
from rldistill.envs.wrappers import Env

CONTAINERS = (spaces.Dict, spaces.Tuple)


def obs_part(env_id: str, space: spaces.Space[Any], name: str = "") -> ObsPart:
    """Return the part of a space, the entry `name` of a dict; raise ConfigError if it is not supported."""
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return ObsPart((), "int64", (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete) and not np.any(space.start):
        return ObsPart(space.shape, "int64", tuple(int(n) for n in space.nvec.ravel()))
    if isinstance(space, spaces.Box | spaces.MultiBinary) and 0 not in space.shape:
        return ObsPart(space.shape, obs_dtype(space.dtype))
    is_flat = isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.OneOf)
    is_empty = isinstance(space, spaces.Box | spaces.MultiBinary)
    kind = short_repr(space) if is_flat or is_empty else f"{type(space).__name__} of any size"
    where = f"an entry {name!r} in its observations, {kind}" if name else f"observations {kind}"
    remedy = "Use Box, MultiBinary, Discrete or MultiDiscrete from 0, or a Dict or Tuple of these"
    if is_flat:
        remedy = f"{remedy}; or add {{name: FlattenObservation}} to env.wrappers"
    elif name:
        remedy = f"Leave it out: add FilterObservation with the other entries as filter_keys to env.wrappers. {remedy}"
    raise ConfigError(f"env.id: {env_id} has {where}. {remedy}.")


def obs_parts(env_id: str, space: spaces.Space[Any]) -> Parts:
    """Return the parts of a dict or tuple; raise ConfigError for an entry that is not supported."""
    named = [*walk(space, CONTAINERS)]
    if not named:
        raise ConfigError(f"env.id: {env_id} has no entries in its observations. Add one.")
    if len({name for name, _ in named}) < len(named):
        raise ConfigError(f"env.id: {env_id} has two entries of one name in its observations. Rename one.")
    return tuple((name, obs_part(env_id, part, name)) for name, part in named)


class FlatDict(gymnasium.ObservationWrapper[NDArray[Any], Any, Any]):
    """Wrapper that joins the entries of an observation into one array (`core.entries.join_parts`)."""

    def __init__(self, env: Env, name: str) -> None:
        super().__init__(env)
        self.name, self.parts = name, obs_parts(name, env.observation_space)
        self._spaces = [*walk(env.observation_space, CONTAINERS)]
        size, self.dtype = joined_layout(self.parts)
        low, high = (0, 255) if self.dtype == "uint8" else (-np.inf, np.inf)
        self.observation_space = spaces.Box(low, high, (size,), np.dtype(self.dtype).type)

    def observation(self, observation: Any) -> NDArray[Any]:
        """Join the entries; raise SpecMismatchError for a missing one, and for one that does not fit its space."""
        arrays = {}
        for key, space in self._spaces:
            try:
                entry = find_entry(observation, key)
            except KeyError:
                known = named_values(observation)
                found = f"only {', '.join(known)}" if "" not in known else f"and is {kind_of(observation)}"
                raise SpecMismatchError(
                    f"env: {self.name}: the observation has no entry {key!r}, {found}. Return all that its "
                    "observation_space has."
                ) from None
            arrays[key] = fitting_array(entry, space, f"env: {self.name}: the entry {key!r}")[None]
        joined: NDArray[Any] = join_parts(arrays, self.parts, self.dtype)[0]
        return joined
