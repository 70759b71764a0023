"""JSON documents of our own as pydantic models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from rldistill.core.errors import CorruptArtifactError
from rldistill.core.fields import explain

CHANGED = "The file was changed; write it again."

M = TypeVar("M", bound="Document")


class Document(BaseModel):
    """JSON object in which every field is required and no other is allowed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    advice: ClassVar[str] = CHANGED

    @classmethod
    def parse(cls: type[M], value: Any, path: Path) -> M:
        """Return the model of a JSON value that was read from `path`; raise CorruptArtifactError if it is none."""
        document: M = read_value(cls, value, path, advice=cls.advice)
        return document


def read_value(annotation: Any, value: Any, path: Path, field: str = "", advice: str = CHANGED) -> Any:
    """Return a JSON value as its annotated type.

    Raises:
        CorruptArtifactError: The value is not valid; the message has the path, the field and the problem in one line.
    """
    try:
        # From JSON, where a list is a tuple and nothing else is converted.
        return TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        first["loc"] = tuple(filter(None, [field, *_location(first["loc"], value)]))
        problem = explain(first)
        raise CorruptArtifactError(f"{path}: {problem}{'' if problem.endswith('?') else '.'} {advice}") from None


def _location(loc: tuple[int | str, ...], value: Any) -> list[str]:
    """Return the location of an error without pydantic's names of the members of a union."""
    parts = []
    for number, part in enumerate(loc, 1):
        if isinstance(value, dict | list):
            inside = part in value if isinstance(value, dict) else isinstance(part, int) and part < len(value)
            if inside:
                value = value[part]  # type: ignore[index]
            if inside or number == len(loc):
                parts.append(str(part))
    return parts
