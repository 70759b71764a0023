"""Encodings of text files, which differ between systems unless they are given."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [file for folder in ("src", "benchmarks", "docs", "examples") for file in sorted((ROOT / folder).rglob("*.py"))]


def without_encoding(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        first, mode = (0 if method else 1), keywords.get("mode")
        mode = mode or (node.args[first] if len(node.args) > first else ast.Constant("r"))
        # `open` is also a method of other objects, which has no mode of text.
        text_mode = isinstance(mode, ast.Constant) and str(mode.value) in ("r", "w", "a", "x", "rt", "wt", "at", "xt")
        opens = name == "open" and text_mode and (not method or bool(node.args) or "mode" in keywords)
        writes = name == "write_text" and len(node.args) < 2
        reads = name == "read_text" and not node.args
        if (opens or writes or reads) and "encoding" not in keywords:
            yield ast.unparse(node)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_text_files_have_an_encoding(file: Path) -> None:
    assert [*without_encoding(file.read_text(encoding="utf-8"))] == []


def test_calls_without_an_encoding_are_found() -> None:
    calls = ["open(path)", "open(path, 'w')", "path.open('a')", "path.read_text()", "path.write_text(text)"]
    assert [next(without_encoding(call), None) for call in calls] == calls
    fine = ["open(path, 'rb')", "path.open('wb')", "task.open(config)", "path.read_text('utf-8')", "Image.open(path)"]
    assert [call for call in fine if [*without_encoding(call)]] == []
