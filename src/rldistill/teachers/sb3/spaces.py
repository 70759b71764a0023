"""Spaces of SB3 files, read from the plain text beside their pickles, which are never read."""

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rldistill.core.errors import short_repr
from rldistill.teachers.sb3.extractor import RebuildError

NUMBER = r"[-+]?(?:inf|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
DTYPE = r"bool|float(16|32|64)|u?int(8|16|32|64)"
MAX_VALUES = 1 << 23
"""Limit for files: a space holds arrays of its bounds."""
Fields = Mapping[str, Any]
"""Attributes of a space as SB3 writes them: numbers, or their text."""


def read_spaces(data: Fields) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Return the spaces of observations and actions; raise RebuildError for those that are not supported.

    Bounds of floats that the text abbreviates are infinite, but must be there for actions.
    """
    fields = data["action_space"]
    actions = _space(_class_name(fields), fields)
    if isinstance(actions, spaces.Box) and any(
        len(_floats(fields[name])) != math.prod(actions.shape) for name in ("low", "high")
    ):
        raise RebuildError("action bounds that its text abbreviates")
    fields = data["observation_space"]
    if _class_name(fields) != "Dict":
        return _space(_class_name(fields), fields), actions
    entries = [*_entries(str(fields["spaces"]))]
    if not entries:
        raise RebuildError("a dict of observations whose text has no entries")
    if sum(math.prod(_shape(inside)) for _, kind, inside in entries if kind == "Box") > MAX_VALUES:
        raise RebuildError(f"observations of more than {MAX_VALUES:,} values")
    built = OrderedDict((key, _space(kind, inside)) for key, kind, inside in entries)
    return spaces.Dict(built), actions  # Gymnasium sorts the keys of a plain dict


def scaled_images(space: spaces.Space[Any]) -> tuple[str, ...]:
    """Return the entries of an observation that SB3 divides by 255: bytes from 0 to 255 in three dimensions."""
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


def _class_name(fields: Fields) -> str:
    """Return `Box` for "<class 'gymnasium.spaces.box.Box'>"."""
    return str(fields[":type:"]).rstrip("'>").rpartition(".")[2]


def _entries(text: str) -> Iterator[tuple[str, str, Fields]]:
    """Yield key, class and attributes of each entry in the text of a dict space, or an OrderedDict of pairs.

    The text is `{'a': Box(-1.0, 1.0, (3,), float32), 'b': Discrete(4, start=1)}`; in gym 0.19 to 0.21 the bounds of a
    Box are whole arrays.
    """
    end = 0
    while match := re.compile(r"'([^']+)'\s*[:,]\s*(\w+)\(").search(text, end):
        key, kind = match.groups()
        end, depth = match.end(), 1
        while depth and end < len(text):  # to behind the bracket that closes the one of the class
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(text[end], 0)
            end += 1
        inside = text[match.end() : end - 1]
        sizes, _, start = inside.partition("start=")
        fields = {"n": sizes, "nvec": sizes, "start": start}
        if kind == "Box":
            box = re.fullmatch(r"(.*)\(([\d, ]*)\),\s*(\w+)", inside, re.DOTALL)
            if box is None:
                raise RebuildError(f"Box({short_repr(inside)})")
            bounds = re.findall(NUMBER, box[1])
            half = len(bounds) // 2
            fields = {"low": " ".join(bounds[:half]), "high": " ".join(bounds[half:]), "shape": box[2], "dtype": box[3]}
        yield key, kind, fields


def _space(kind: str, fields: Fields) -> spaces.Space[Any]:
    if kind != "Box" and any(_integers(fields.get("start", 0))):
        raise RebuildError(f"a {kind} space with start {short_repr(fields['start'])}")
    if kind == "Discrete":
        return spaces.Discrete(_integers(fields["n"])[0])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete([*_integers(fields["nvec"])])
    if kind == "MultiBinary":
        return spaces.MultiBinary(_shape(fields) or _integers(fields["n"]))
    if kind != "Box":
        raise RebuildError(f"a space of type {short_repr(kind)}")
    shape, name = _shape(fields), str(fields["dtype"])
    size = math.prod(shape)
    if size > MAX_VALUES or not re.fullmatch(DTYPE, name):
        raise RebuildError(f"a Box of shape {short_repr(shape)} and dtype {short_repr(name)}")
    dtype = np.dtype(name)
    is_float = dtype.kind == "f"
    integers = np.iinfo("uint8" if is_float or name == "bool" else dtype)
    smallest, largest = (-np.inf, np.inf) if is_float else (int(integers.min), int(integers.max))
    bounds: list[NDArray[Any]] = []
    for end, limit in (("low", smallest), ("high", largest)):
        values = _floats(fields.get(end, ""))
        if len({*values}) == 1:
            values = values[:1]
        elif len(values) != size:
            if name == "uint8":  # whose bounds decide if they are an image
                raise RebuildError("bounds of bytes that its text abbreviates")
            values = (limit,)
        if not is_float:
            values = tuple(int(min(max(value, smallest), largest)) for value in values)
        bounds.append(np.broadcast_to(np.array(values, dtype), size).reshape(shape).copy())
    return spaces.Box(bounds[0], bounds[1], shape, dtype.type)


def _shape(fields: Fields) -> tuple[int, ...]:
    return _integers(fields.get("shape", fields.get("_shape", "")))


def _floats(text: Any) -> tuple[float, ...]:
    # As float32, the dtype of SB3's spaces, whose text is shorter than the number.
    return tuple(float(np.float32(digits)) for digits in re.findall(NUMBER, str(text)))


def _integers(text: Any) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", str(text)))
