"""Overrides of run files from the command line and the environment."""

from __future__ import annotations

from typing import Any

from rldistill.core.errors import ConfigError
from rldistill.run.errors import short
from rldistill.run.yaml import parse_value


def _assign(document: dict[str, Any], path: str, text: str, source: str, sources: dict[str, str]) -> None:
    *parents, last = path.split(".")
    node: Any = document
    for depth, part in enumerate(parents):
        node = _entry(node, part, ".".join(parents[:depth]), path, source)
    if isinstance(node, list):
        _entry(node, last, ".".join(parents), path, source)
        node[int(last)] = parse_value(text, f"{source}: {path}")
    elif isinstance(node, dict):
        node[last] = parse_value(text, f"{source}: {path}")
    else:
        raise ConfigError(f"{source}: {path}: {'.'.join(parents)} is {short(node)}, which has nothing inside")
    sources[path] = source


def _entry(node: Any, part: str, above: str, path: str, source: str) -> Any:
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    if isinstance(node, list):
        if part.isdecimal() and int(part) < len(node):
            return node[int(part)]
        raise ConfigError(f"{source}: {path}: {above} is a list of {len(node)}; expected an index below that")
    raise ConfigError(f"{source}: {path}: {above} is {short(node)}, which has nothing inside")
