"""Observations of several entries: dicts and tuples, also within each other, as one array and back."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.spec import BYTES, Obs, ObsPart, Parts, PolicySpec, part_sizes


def walk(value: Any, containers: tuple[type[Any], ...], name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is in `containers`, dicts or tuples, by dotted names, such as `camera.left` and `pose.0`."""
    if not isinstance(value, containers):
        yield name, value
        return
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, inner in pairs:
        yield from walk(inner, containers, f"{name}.{key}" if name else str(key))


def named_values(observation: Any) -> dict[str, Any]:
    """Return the entries of an observation by the names of `walk`."""
    return dict(walk(observation, (Mapping, tuple)))


def find_entry(observation: Any, name: str) -> Any:
    """Return the entry of an observation by its name among `walk`; raise KeyError if there is none."""
    if isinstance(observation, tuple | list):
        observation = {str(index): inner for index, inner in enumerate(observation)}
    if not isinstance(observation, Mapping):
        raise KeyError(name)
    if name in observation:
        return observation[name]
    for key, inner in observation.items():
        if name.startswith(f"{key}."):
            return find_entry(inner, name.removeprefix(f"{key}."))
    raise KeyError(name)


def join_parts(entries: Mapping[str, Any], parts: Parts, dtype: str) -> NDArray[Any]:
    """Return the entries of dict observations, `[B, ...]` each, as one array `[B, N]`: float32, or uint8 for the bytes.

    Raise TypeError for fractions in the place of bytes, which were scaled and would become zeros.
    """
    arrays = []
    for key, part in parts:
        array = np.asarray(entries[key])
        joined = array.astype(part.packed_dtype if dtype == "uint8" else dtype, copy=False)
        if array.dtype.kind == "f" and joined.dtype.kind != "f" and not np.array_equal(joined, array):
            raise TypeError(f"the entry {key!r} has fractions, but its space has {part.dtype}")
        arrays.append(np.ascontiguousarray(joined.reshape(len(array), -1)).view(dtype))
    return np.concatenate(arrays, 1)


def join_tensors(entries: Mapping[str, Tensor], spec: PolicySpec) -> Tensor:
    """Return the entries of dict observations as one tensor `[B, N]`, as `join_parts`."""
    arrays = {key: entries[key].cpu().numpy() for key, _ in spec.parts}
    return torch.from_numpy(join_parts(arrays, spec.parts, spec.obs_dtype)).to(next(iter(entries.values())).device)


def flat_values(obs: Obs, spec: PolicySpec) -> Tensor:
    """Return dict observations as one float32 vector of all values, `[B, N]`, and others as they are."""
    if isinstance(obs, Tensor) and (not spec.parts or obs.dtype != torch.uint8):
        return obs
    entries = split_parts(obs, spec)
    return torch.cat([entries[key].reshape(len(entries[key]), -1).float() for key, _ in spec.parts], 1)


def is_finite(obs: NDArray[Any], spec: PolicySpec) -> bool:
    """Return True if no number of the observations `[B, ...]` is NaN or infinite."""
    if not spec.parts or obs.dtype != np.uint8:
        return obs.dtype.kind != "f" or bool(np.isfinite(obs).all())
    arrays = np.split(obs, np.cumsum(part_sizes(spec.parts, True))[:-1], axis=1)
    pairs = zip(arrays, spec.parts, strict=True)
    numbers = (np.ascontiguousarray(array).view(np.float32) for array, (_, part) in pairs if part.dtype not in BYTES)
    return all(bool(np.isfinite(array).all()) for array in numbers)


def first_entry(obs: Obs) -> Tensor:
    """Return observations of one array as they are, and of a dict the first entry, which has its batch and device."""
    return obs if isinstance(obs, Tensor) else next(iter(obs.values()))


def split_parts(obs: Obs, spec: PolicySpec) -> dict[str, Tensor]:
    """Return the entries of dict observations, which may be stored as one array `[B, N]`."""
    if not isinstance(obs, Tensor):
        return dict(obs)
    packed, entries = obs.dtype == torch.uint8, {}
    arrays = obs.split_with_sizes(part_sizes(spec.parts, packed), 1)
    for (key, part), entry in zip(spec.parts, arrays, strict=True):
        if packed and part.dtype not in BYTES:
            entry = entry.clone(memory_format=torch.contiguous_format).view(torch.float32)  # aligned in its copy
        elif part.dtype in BYTES if packed else part.dtype == "uint8":
            entry = entry.to(torch.uint8).view(getattr(torch, part.dtype))
        entries[key] = entry.reshape(len(obs), *part.shape)
    return entries


def value_names(spec: PolicySpec) -> list[str]:
    """Return the name of each value of an observation: `obs[0]`, or `speed[0]` for the entry `speed` of a dict."""
    return [name for key, part in spec.entries.items() for name in value_names_of(key, part)]


def value_names_of(key: str, part: ObsPart) -> list[str]:
    """Return the name of each value of one entry."""
    indices = np.ndindex(*part.shape) if part.shape else [(0,)]
    return [f"{key or 'obs'}[{', '.join(map(str, index))}]" for index in indices]
