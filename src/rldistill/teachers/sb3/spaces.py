"""What an SB3 policy takes and gives, read from the plain text beside its pickled spaces or from live ones."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from rldistill.core.heads import (
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    MultiCategoricalHead,
)
from rldistill.core.spec import ObsPart, PolicySpec

NUMBER = r"[-+]?(?:inf|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"


class NotRebuilt(Exception):
    """A policy that ours cannot express; the text says why."""


class Disagree(NotRebuilt):
    """What a file says of its policy in words is not what its tensors are."""


def spec_from_text(data: dict[str, Any]) -> PolicySpec:
    """From the fields that SB3 writes in plain text beside each pickle, which is never read."""
    observations, actions = data["observation_space"], data["action_space"]
    head = _head_from_text(actions)
    kind = class_name(observations[":type:"])
    if kind == "Dict":
        return PolicySpec.from_parts(tuple(_parts_from_text(str(observations["spaces"]))), head)
    part = _part_from_fields(kind, observations)
    return PolicySpec(part.shape, part.dtype, head, nvec=part.nvec)


def spec_from_spaces(model: Any) -> PolicySpec:
    """From the spaces of a live model."""
    space, head = model.observation_space, _head_from_space(model.action_space)
    if class_name(type(space)) == "Dict":
        parts = tuple((key, _part_from_space(inner)) for key, inner in space.spaces.items())
        return PolicySpec.from_parts(parts, head)
    part = _part_from_space(space)
    return PolicySpec(part.shape, part.dtype, head, nvec=part.nvec)


def class_name(value: Any) -> str:
    """`Box` of "<class 'gymnasium.spaces.box.Box'>"."""
    return str(value).rstrip("'>").rpartition(".")[2]


def _part_from_fields(kind: str, fields: dict[str, Any]) -> ObsPart:
    if kind == "Box":
        return ObsPart(_integers(fields.get("shape", fields.get("_shape"))), str(fields["dtype"]))
    if kind == "Discrete":
        if int(fields.get("start", 0)):
            raise NotRebuilt(f"discrete observations that start at {fields['start']}")
        return ObsPart((), "int64", (int(fields["n"]),))
    if kind == "MultiDiscrete":
        sizes = _integers(fields["nvec"])
        return ObsPart((len(sizes),), "int64", sizes)
    if kind == "MultiBinary":
        return ObsPart(_integers(fields.get("shape", fields.get("_shape", fields["n"]))), "int8")
    raise NotRebuilt(f"observations of type {kind}")


def _part_from_space(space: Any) -> ObsPart:
    fields = {"shape": space.shape, "dtype": space.dtype, "start": getattr(space, "start", 0)}
    fields |= {"n": getattr(space, "n", 0), "nvec": getattr(space, "nvec", ())}
    return _part_from_fields(class_name(type(space)), fields)


def _parts_from_text(text: str) -> Iterable[tuple[str, ObsPart]]:
    """`{'a': Box(-1.0, 1.0, (3,), float32), 'b': Discrete(4)}`, or an OrderedDict of such pairs."""
    found = [(key, _part_from_repr(kind, inside)) for key, kind, inside in _entries_in_text(text)]
    if not found:
        raise NotRebuilt("a dict of observations whose text names no entries")
    return found


def _entries_in_text(text: str) -> Iterable[tuple[str, str, str]]:
    """The key of each entry, its kind and what stands between its brackets."""
    at = 0
    while match := re.compile(r"'([^']+)'\s*[:,]\s*(\w+)\(").search(text, at):
        key, kind = match.groups()
        at = _closing(text, match.end())
        yield key, kind, text[match.end() : at]


def _closing(text: str, at: int) -> int:
    """Where the bracket opened before `at` is closed."""
    depth = 1
    while depth and at < len(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(text[at], 0)
        at += 1
    return at - 1


def _part_from_repr(kind: str, inside: str) -> ObsPart:
    if kind == "Box":
        match = re.search(r"\(([\d, ]*)\),\s*(\w+)$", inside)
        if match is None:
            raise NotRebuilt(f"Box({inside})")
        return ObsPart(_integers(match[1]), match[2])
    if kind == "Discrete":
        return _part_from_fields(kind, {"n": _integers(inside)[0], "start": "start" in inside})
    return _part_from_fields(kind, {"nvec": inside, "n": inside})


def _head_from_text(fields: dict[str, Any]) -> ActionHead:
    kind = class_name(fields[":type:"])
    if kind == "Box":
        low, high = (_floats(fields[k]) for k in ("low", "high"))
        if not len(low) == len(high) == math.prod(_integers(fields.get("shape", fields.get("_shape")))):
            raise NotRebuilt("action bounds that its text does not give in full")
        return DeterministicHead(low=low, high=high)
    return _discrete_head(kind, fields)


def _head_from_space(space: Any) -> ActionHead:
    kind = class_name(type(space))
    if kind == "Box":
        return DeterministicHead(low=tuple(space.low.ravel().tolist()), high=tuple(space.high.ravel().tolist()))
    fields = {name: getattr(space, name, 0) for name in ("n", "nvec", "start")}
    return _discrete_head(kind, fields)


def _discrete_head(kind: str, fields: dict[str, Any]) -> ActionHead:
    if kind == "Discrete" and int(fields.get("start", 0)) == 0:
        return CategoricalHead((int(fields["n"]),))
    if kind == "MultiDiscrete":
        return MultiCategoricalHead(_integers(fields["nvec"]))
    if kind == "MultiBinary":
        return BernoulliHead((math.prod(_integers(fields["n"])),))
    raise NotRebuilt(f"actions of type {kind}, start {fields.get('start')}")


def divided_in_text(fields: dict[str, Any]) -> tuple[str, ...]:
    """The entries of an observation that SB3 divides by 255: bytes from 0 to 255 in three dimensions."""
    if class_name(fields[":type:"]) == "Dict":
        entries = _entries_in_text(str(fields["spaces"]))
        return tuple(key for key, kind, inside in entries if kind == "Box" and _is_picture_in_text(inside))
    low, high = (set(_floats(fields.get(name, ""))) for name in ("low", "high"))
    bytes_of_pictures = str(fields.get("dtype")) == "uint8" and low == {0.0} and high == {255.0}
    return ("",) if bytes_of_pictures and len(_integers(fields.get("shape", fields.get("_shape")))) == 3 else ()


def _is_picture_in_text(inside: str) -> bool:
    """Of `0, 255, (3, 40, 44), uint8`, or with arrays for the bounds, as gym 0.19 to 0.21 print them."""
    match = re.fullmatch(r"(.*)\(\d+, \d+, \d+\), uint8", inside, re.DOTALL)
    bounds = _floats(match[1]) if match else ()
    half = len(bounds) // 2
    return set(bounds[:half]) == {0.0} and set(bounds[half:]) == {255.0}


def divided_in(space: Any) -> tuple[str, ...]:
    """The same of a live space."""
    entries = dict(space.spaces) if class_name(type(space)) == "Dict" else {"": space}
    return tuple(
        key
        for key, inner in entries.items()
        if str(inner.dtype) == "uint8"
        and len(inner.shape) == 3
        and hasattr(inner, "low")
        and (inner.low == 0).all()
        and (inner.high == 255).all()
    )


def _floats(text: Any) -> tuple[float, ...]:
    # To float32, which SB3's spaces have: its text is shorter than the number.
    return tuple(float(np.float32(digits)) for digits in re.findall(NUMBER, str(text)))


def _integers(text: Any) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", str(text)))
