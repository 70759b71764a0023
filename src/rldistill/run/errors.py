"""What is wrong with a run file, in one line: who said it, where, what was found and what was expected."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from rldistill.core.errors import did_you_mean

EXPECTED = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "too_short": "at least {min_length}",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "tuple_type": "a list",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "path_type": "a path",
    "string_pattern_mismatch": "letters, digits, - and _",
}


def explained(errors: Sequence[ErrorDetails], document: Any, sources: Mapping[str, str]) -> str:
    """The first of pydantic's errors, and how many more there are."""
    error = errors[0]
    context = error.get("ctx", {})
    path = _path(error["loc"], document)
    if error["type"] == "missing":
        path.append(str(error["loc"][-1]))
    elif "key" in context:
        path.append(context["key"])
    elif error["type"].startswith("union_tag"):
        path.append(context["discriminator"].removesuffix("()"))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if error["type"] == "refused":
        return f"{_source(path, sources)}: {error['msg']}{more}"
    return f"{_source(path, sources)}: {'.'.join(path)}: {_what(error, context)}{more}"


def _what(error: ErrorDetails, context: Mapping[str, Any]) -> str:
    found = f"found {short(error['input'])}, expected"
    match error["type"]:
        case "missing":
            return "is missing"
        case "bad_key" | "repeated":
            return error["msg"]
        case "union_tag_not_found":
            return "is missing"
        case "union_tag_invalid":
            known = [name.strip("' ") for name in context["expected_tags"].split(",")]
            return f"there is no {context['tag']!r}.{did_you_mean(context['tag'], known)} Known: {', '.join(known)}"
        case kind if kind in EXPECTED:
            return f"{found} {EXPECTED[kind].format(**context)}"
        case _:
            return f"{found} {re.sub('^Input should (be )?', '', error['msg'])}"


def _path(location: Iterable[int | str], document: Any) -> list[str]:
    """The location in the file; pydantic's also names the choices it made on the way."""
    path = []
    for part in location:
        if isinstance(document, dict):
            inside = part in document
        else:
            inside = isinstance(part, int) and isinstance(document, list) and part < len(document)
        if inside:
            document = document[part]
            path.append(str(part))
    return path


def _source(path: Sequence[str], sources: Mapping[str, str]) -> str:
    """Who said the value at `path`: the override nearest to it, one of something inside it, or the file."""
    for depth in range(len(path), 0, -1):
        if (near := ".".join(path[:depth])) in sources:
            return sources[near]
    inside = (source for key, source in sources.items() if path and key.startswith(".".join(path) + "."))
    return next(inside, sources[""])


def short(value: Any) -> str:
    """A value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
