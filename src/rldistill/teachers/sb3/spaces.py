"""Specs of SB3 policies, read from the plain text beside their pickled spaces, and spaces of specs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from rldistill.core.heads import (
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    DeterministicHead,
    MultiCategoricalHead,
)
from rldistill.core.spec import ObsPart, PolicySpec
from rldistill.teachers.weights import RebuildError

NUMBER = r"[-+]?(?:inf|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
Fields = Mapping[str, Any]
"""Attributes of a space as SB3 writes them: numbers, or their text."""


def spec_from_text(data: Fields) -> PolicySpec:
    """Return the spec from the fields that SB3 writes in plain text beside each pickle, which is never read."""
    fields, head = data["observation_space"], _head(data["action_space"])
    kind = _class_name(fields[":type:"])
    if kind != "Dict":
        part = _part(kind, fields)
        return PolicySpec(part.shape, part.dtype, head, nvec=part.nvec)
    parts = tuple((key, _part_from_repr(kind, inside)) for key, kind, inside in _entries(str(fields["spaces"])))
    if not parts:
        raise RebuildError("a dict of observations whose text has no entries")
    return PolicySpec.from_parts(parts, head)


def scaled_images_in_text(fields: Fields) -> tuple[str, ...]:
    """Return the entries of an observation that SB3 divides by 255: bytes from 0 to 255 in three dimensions."""
    if _class_name(fields[":type:"]) == "Dict":
        entries = _entries(str(fields["spaces"]))
        return tuple(key for key, kind, inside in entries if kind == "Box" and _is_image_repr(inside))
    low, high = (set(_floats(fields.get(name, ""))) for name in ("low", "high"))
    is_image = str(fields.get("dtype")) == "uint8" and low == {0.0} and high == {255.0} and len(_shape(fields)) == 3
    return ("",) if is_image else ()


def scaled_images(space: spaces.Space[Any]) -> tuple[str, ...]:
    """Return the entries of a live observation space that SB3 divides by 255."""
    entries = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    return tuple(
        key
        for key, part in entries.items()
        if isinstance(part, spaces.Box)
        and part.dtype == np.uint8
        and len(part.shape) == 3
        and (part.low == 0).all()
        and (part.high == 255).all()
    )


def observation_space(spec: PolicySpec) -> spaces.Space[Any]:
    """Return a space with the shapes and dtypes of a spec; the bounds of floats are infinite."""
    parts = {key: _space(part) for key, part in spec.entries.items()}
    return spaces.Dict(parts) if spec.parts else parts[""]


def _space(part: ObsPart) -> spaces.Space[Any]:
    if part.nvec:
        return spaces.MultiDiscrete(list(part.nvec)) if part.shape else spaces.Discrete(part.nvec[0])
    dtype = np.dtype(part.dtype)
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return spaces.Box(low, high, part.shape, dtype.type)


def _class_name(text: Any) -> str:
    """Return `Box` for "<class 'gymnasium.spaces.box.Box'>"."""
    return str(text).rstrip("'>").rpartition(".")[2]


def _part(kind: str, fields: Fields) -> ObsPart:
    if kind == "Box":
        return ObsPart(_shape(fields), str(fields["dtype"]))
    if kind == "Discrete":
        if int(fields.get("start", 0)):
            raise RebuildError(f"discrete observations that start at {fields['start']}")
        return ObsPart((), "int64", (int(fields["n"]),))
    if kind == "MultiDiscrete":
        sizes = _integers(fields["nvec"])
        return ObsPart((len(sizes),), "int64", sizes)
    if kind == "MultiBinary":
        return ObsPart(_shape(fields) or _integers(fields["n"]), "int8")
    raise RebuildError(f"observations of type {kind}")


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, class and arguments of each entry in the text of a dict space, or an OrderedDict of pairs.

    The text is `{'a': Box(-1.0, 1.0, (3,), float32), 'b': Discrete(4)}`.
    """
    end = 0
    while match := re.compile(r"'([^']+)'\s*[:,]\s*(\w+)\(").search(text, end):
        key, kind = match.groups()
        end = _closing_bracket(text, match.end())
        yield key, kind, text[match.end() : end]


def _closing_bracket(text: str, start: int) -> int:
    """Return the index of the bracket that closes the one opened before `start`."""
    depth, index = 1, start
    while depth and index < len(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(text[index], 0)
        index += 1
    return index - 1


def _part_from_repr(kind: str, inside: str) -> ObsPart:
    if kind == "Box":
        match = re.search(r"\(([\d, ]*)\),\s*(\w+)$", inside)
        if match is None:
            raise RebuildError(f"Box({inside})")
        return ObsPart(_integers(match[1]), match[2])
    if kind == "Discrete":
        return _part(kind, {"n": _integers(inside)[0], "start": "start" in inside})
    return _part(kind, {"nvec": inside, "n": inside})


def _is_image_repr(inside: str) -> bool:
    """Return True for `0, 255, (3, 40, 44), uint8`, or with arrays as bounds, as in the text of gym 0.19 to 0.21."""
    match = re.fullmatch(r"(.*)\(\d+, \d+, \d+\), uint8", inside, re.DOTALL)
    bounds = _floats(match[1]) if match else ()
    half = len(bounds) // 2
    return set(bounds[:half]) == {0.0} and set(bounds[half:]) == {255.0}


def _head(fields: Fields) -> ActionHead:
    kind = _class_name(fields[":type:"])
    if kind == "Box":
        low, high = (_floats(fields[name]) for name in ("low", "high"))
        if not len(low) == len(high) == math.prod(_shape(fields)):
            raise RebuildError("action bounds that its text abbreviates")
        return DeterministicHead(low=low, high=high)
    if kind == "Discrete" and int(fields.get("start", 0)) == 0:
        return CategoricalHead((int(fields["n"]),))
    if kind == "MultiDiscrete":
        return MultiCategoricalHead(_integers(fields["nvec"]))
    if kind == "MultiBinary":
        return BernoulliHead((math.prod(_integers(fields["n"])),))
    raise RebuildError(f"actions of type {kind}, start {fields.get('start')}")


def _shape(fields: Fields) -> tuple[int, ...]:
    return _integers(fields.get("shape", fields.get("_shape", "")))


def _floats(text: Any) -> tuple[float, ...]:
    # As float32, the dtype of SB3's spaces, whose text is shorter than the number.
    return tuple(float(np.float32(digits)) for digits in re.findall(NUMBER, str(text)))


def _integers(text: Any) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", str(text)))
