"""Size of keyword arguments that come from untrusted files."""

from collections.abc import Mapping
from typing import Any


def are_small(kwargs: Mapping[str, Any]) -> bool:
    """Return True if arguments are few and small. Large ones of an untrusted file could fill the memory."""
    return len(kwargs) <= 8 and all(_is_small(value) for value in kwargs.values())


def _is_small(value: Any, limit: float = 1e5) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 4_096 and all(_is_small(item, 4_096) for item in value)
    if isinstance(value, str):
        return len(value) <= 64
    return value is None or (isinstance(value, int | float) and not abs(value) > limit)
