"""Ranges and choices of parameters that differ between the episodes of an environment."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import PlainSerializer, PlainValidator

from rldistill.core.errors import short_repr
from rldistill.core.fields import invalid, read, validated_dataclass

Range = tuple[float, float]
"""Ends of an interval, of which each episode draws a number uniformly."""


@validated_dataclass
class Choice:
    """Values, of which each episode draws one.

    Attributes:
        values: The values.
    """

    values: Annotated[tuple[bool | int | float | str, ...], MinLen(1)]


def _read_parameter(value: Any) -> Range | Choice:
    if isinstance(value, Choice | Mapping):
        return read(Choice, value)  # type: ignore[no-any-return]
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(end) in (int, float) for end in value):
        low, high = map(float, value)
        if -math.inf < low < high < math.inf:
            return low, high
    raise invalid(f"found {short_repr(value)}, expected two numbers, the smaller one first, or {{values: [...]}}")


def _write_parameter(parameter: Range | Choice) -> Any:
    return asdict(parameter) if isinstance(parameter, Choice) else [*parameter]


Parameter = Annotated[
    Range | Choice,
    PlainValidator(_read_parameter, json_schema_input_type=Range | Choice),
    PlainSerializer(_write_parameter),
]
Worlds = dict[str, Parameter]
"""Parameters that differ between episodes, by name."""
