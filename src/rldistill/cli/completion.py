"""Completion in a shell: run files, folders of runs, teachers that ship, and KEY=VALUE from the schema of run files."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

MAX_DEPTH = 1
"""Largest number of dots in a key that is completed without the key before it."""
WORD_BREAKS = "=:"
"""Characters of settings and paths at which bash breaks words."""


@contextlib.contextmanager
def whole_words() -> Iterator[None]:
    """Complete whole words in bash, which sends their parts, and replaces only the last part by an answer."""
    shell, number = os.environ.get("_RLDISTILL_COMPLETE"), os.environ.get("COMP_CWORD", "")
    if shell != "complete_bash" or not number.isdecimal() or "COMP_WORDS" not in os.environ:
        yield
        return
    words = join_words(os.environ["COMP_WORDS"].split("\n")[: int(number) + 1])
    os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    start = max(words[-1].rfind(mark) for mark in WORD_BREAKS) + 1
    answers = io.StringIO()
    try:
        with contextlib.redirect_stdout(answers):
            yield
    finally:
        sys.stdout.write("".join(line[start:] for line in answers.getvalue().splitlines(keepends=True)))


def join_words(parts: list[str]) -> list[str]:
    """Return whole words, given the parts between and at the characters `WORD_BREAKS`."""
    words: list[str] = []
    joins = False
    for part in parts:
        breaks = part != "" and not part.strip(WORD_BREAKS)
        if words and (breaks or joins):
            words[-1] += part
        else:
            words.append(part)
        joins = breaks
    return words


def complete_file(incomplete: str) -> list[str]:
    """Return run files that begin with `incomplete`, in its folder and one level below."""
    return _paths(incomplete, ("*.yaml", "*.yml", "*/*.yaml", "*/*.yml"))


def complete_run(incomplete: str) -> list[str]:
    """Return folders of evaluated runs that begin with `incomplete`, in its folder and one level below."""
    return _folders_with("evaluation.json", incomplete)


def complete_started_run(incomplete: str) -> list[str]:
    """Return folders of runs, evaluated or not, that begin with `incomplete`, in its folder and one level below."""
    return _folders_with("provenance.json", incomplete)


def _folders_with(name: str, incomplete: str) -> list[str]:
    return [file.removesuffix(f"/{name}") for file in _paths(incomplete, (f"*/{name}", f"*/*/{name}"))]


def complete_source(incomplete: str) -> list[str]:
    """Return folders of runs and teachers that ship that begin with `incomplete`."""
    return [*complete_started_run(incomplete), *complete_teacher(incomplete)]


def complete_student(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the students of the run on the line that begin with `incomplete`."""
    # After an option without its value, the arguments of the line have no names yet.
    run = ctx.params.get("run") or ctx.params.get("path") or next(iter(ctx.args), ".")
    folders = (Path(run) / "students").glob(f"{glob.escape(incomplete)}*/")
    return sorted(folder.name for folder in folders)


def complete_student_type(incomplete: str) -> list[str]:
    """Return the types of students that begin with `incomplete`."""
    return [choice.partition("=")[2] for choice in complete_setting(f"students.any={incomplete}")]


def _paths(incomplete: str, patterns: tuple[str, ...]) -> list[str]:
    folder = Path(incomplete.rpartition("/")[0] or ("/" if incomplete.startswith("/") else "."))
    found = {str(path) for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if path.startswith(incomplete.removeprefix("./")))


def complete_teacher(incomplete: str) -> list[str]:
    """Return the teachers that ship, `zoo:NAME`, that begin with `incomplete`."""
    from rldistill.teachers.zoo import ZOO, zoo_names

    return [path for name in zoo_names() if (path := f"{ZOO}{name}").startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """Return the keys of run files, with `=`, and the values of a key that begin with `incomplete`.

    A shell ends the only answer with a space, so the only key comes with its values, or with its default.
    """
    from rldistill.run.schema import run_schema

    schema = run_schema()
    key, equals, _ = incomplete.partition("=")
    choices = {f"{key}={path}" for path in complete_teacher("")} if key == "teacher" and equals else set[str]()
    defaults = dict[str, Any]()
    for name, values, default in _settings(schema, schema["$defs"], key.split(".")):
        choices |= {f"{name}={value}" for value in values if name == key} if equals else {f"{name}="}
        defaults[f"{name}="] = default
    found = sorted(choice for choice in choices if choice.startswith(incomplete))
    if len(found) != 1 or equals:
        return found
    if not (values := complete_setting(found[0])) and isinstance(default := defaults[found[0]], int | float | str):
        values = [f"{found[0]}{default}"]
    return values if len(values) > 1 else [*found, *values]


def _settings(
    node: dict[str, Any], definitions: dict[str, Any], wanted: list[str], prefix: str = ""
) -> Iterator[tuple[str, list[str], Any]]:
    """Yield all keys below a node, with their possible values if there are few, and their defaults.

    Dicts by name, such as `students`, have the names that the key `wanted` has at this place.
    """
    for name, field in node["properties"].items():
        key, parts = f"{prefix}{name}", [*_alternatives(field, definitions)]
        yield key, [*_values(parts, definitions)], field.get("default")
        depth = key.count(".") + 1
        for part in parts:
            # Deeper keys only after their own prefix: schedules have keys of their own, and there are many.
            if "properties" in part and (depth <= MAX_DEPTH or ".".join(wanted[:depth]) == key):
                yield from _settings(part, definitions, wanted, f"{key}.")
            elif isinstance(inner := part.get("additionalProperties"), dict) and ".".join(wanted[:depth]) == key:
                names = {own: inner for own in wanted[depth : depth + 1] if own}
                yield from _settings({"properties": names}, definitions, wanted, f"{key}.")


def _values(parts: list[dict[str, Any]], definitions: dict[str, Any]) -> Iterator[str]:
    for part in parts:
        yield from map(str, part.get("enum", ()))
        yield from map(str, [part["const"]] if "const" in part else [])
        if part.get("type") == "boolean":
            yield from ("true", "false")
        if isinstance(items := part.get("items"), dict):
            yield from (f"[{value}]" for value in _values([*_alternatives(items, definitions)], definitions))


def _alternatives(node: dict[str, Any], definitions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    if "anyOf" not in node:
        yield node
    for part in node.get("anyOf", ()):
        yield from _alternatives(part, definitions)
