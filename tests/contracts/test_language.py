"""Language rules that ruff cannot check: plain openings of docstrings, help texts and errors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import rldistill

FILES = sorted(Path(rldistill.__file__).parent.rglob("*.py"))
MAX_WHAT_PER_1000_WORDS = 2
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, Documented):
            yield ast.get_docstring(node) or ""


def texts(tree: ast.Module) -> Iterator[str]:
    """Yield all string constants: docstrings, help texts, and the first parts of error messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FILES[0].parent)))
def test_no_text_begins_with_a_relative_pronoun(file: Path) -> None:
    found = [text for text in texts(ast.parse(file.read_text())) if re.match(r"(What|Of|Whether|Those|That) ", text)]
    assert not found


def test_docstrings_use_nouns_instead_of_what() -> None:
    words = [
        word
        for file in FILES
        for text in docstrings(ast.parse(file.read_text()))
        for word in re.findall(r"[a-z']+", text.lower())
    ]
    assert 1000 * words.count("what") / len(words) <= MAX_WHAT_PER_1000_WORDS
