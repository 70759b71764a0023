"""Keyword arguments of environments and wrappers, some of which come from untrusted files."""

from collections.abc import Iterator, Mapping
from typing import Any


def are_small(kwargs: Mapping[str, Any]) -> bool:
    """Return True if arguments are few and small; those of an untrusted file could fill the memory."""
    return len(kwargs) <= 8 and all(_is_small(value) for value in kwargs.values())


def _is_small(value: Any, limit: float = 1e5) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 4_096 and all(_is_small(item, 4_096) for item in value)
    if isinstance(value, str):
        return len(value) <= 64
    return value is None or (isinstance(value, int | float) and not abs(value) > limit)


def flat_items(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in nested dictionaries, with the path of each as its name, such as `config.duration`."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flat_items(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
