"""Completion of KEY=VALUE in a shell, from the schema of run files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def complete_setting(incomplete: str) -> list[str]:
    """Return the keys of run files, with `=`, and the values of a key that begin with `incomplete`."""
    from rldistill.run.schema import run_schema

    schema = run_schema()
    settings = dict(_settings(schema, schema["$defs"]))
    key, equals, _ = incomplete.partition("=")
    choices = [f"{key}={value}" for value in settings.get(key, ())] if equals else [f"{name}=" for name in settings]
    return sorted(choice for choice in choices if choice.startswith(incomplete))


def complete_teacher(incomplete: str) -> list[str]:
    """Return the teachers that ship, `zoo:NAME`, that begin with `incomplete`."""
    from rldistill.teachers.zoo import ZOO, zoo_names

    return [path for name in zoo_names() if (path := f"{ZOO}{name}").startswith(incomplete)]


def _settings(node: dict[str, Any], definitions: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield all keys below a node, with their possible values if there are few."""
    for name, field in node["properties"].items():
        key, parts = f"{prefix}{name}", [*_alternatives(field, definitions)]
        values = [str(value) for part in parts for value in part.get("enum", ())]
        values += [value for part in parts if part.get("type") == "boolean" for value in ("true", "false")]
        if "const" not in field:
            yield key, values
        for part in parts:
            # A dict by name, such as `students`, has no fixed keys, and schedules have keys of their own.
            if "properties" in part and key.count(".") < 2:
                yield from _settings(part, definitions, f"{key}.")


def _alternatives(node: dict[str, Any], definitions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    if "anyOf" not in node:
        yield node
    for part in node.get("anyOf", ()):
        yield from _alternatives(part, definitions)
