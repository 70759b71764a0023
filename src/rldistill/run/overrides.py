"""Overrides of run files from the command line and the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rldistill.core.errors import ConfigError, short_repr
from rldistill.run.yaml import parse_value

PREFIX = "RLDISTILL__"
"""Prefix of environment variables that override a run file; `__` separates the keys."""


def apply_overrides(
    document: dict[str, Any], overrides: Sequence[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """Write overrides into a document and return their sources by key."""
    sources = {}
    for variable, text in environment.items():
        if variable.startswith(PREFIX):
            path = variable.removeprefix(PREFIX).lower().replace("__", ".")
            sources[path] = f"environment variable {variable}"
            _assign(document, path, text, sources[path])
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"command line: found {override!r}, expected key=value, as in distill.epochs=3")
        sources[path] = "command line"
        _assign(document, path, text, sources[path])
    return sources


def _assign(document: dict[str, Any], path: str, text: str, source: str) -> None:
    value = parse_value(text, f"{source}: {path}")
    *parents, last = path.split(".")
    node: Any = document
    for depth, part in enumerate(parents):
        key = _key(node, part, f"{source}: {path}: {'.'.join(parents[:depth])}")
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    node[_key(node, last, f"{source}: {path}: {'.'.join(parents)}")] = value


def _key(node: Any, part: str, where: str) -> str | int:
    """Return the key, or the index of a list, that `part` of a path is in `node`."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ConfigError(f"{where} is {short_repr(node)}, which has nothing inside")
    if not part.isdecimal() or int(part) >= len(node):
        raise ConfigError(f"{where} is a list of {len(node)}; expected an index below that")
    return int(part)
