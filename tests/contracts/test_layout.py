"""Limits of the source: sizes of files and functions, and no loose modules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rldistill

SRC = Path(rldistill.__file__ or "").parent
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
FILES = sorted(SRC.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SRC).as_posix())
def test_files_and_functions_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


def test_no_module_is_loose_in_the_package() -> None:
    assert {file.name for file in SRC.glob("*.py")} == {"__init__.py", "__main__.py"}
