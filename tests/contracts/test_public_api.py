"""What `import rldistill` promises."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rldistill

STAGES = ["train_teacher", "load_policy", "collect", "distill", "evaluate", "write_report"]


def test_the_six_stages_come_first_and_in_order() -> None:
    assert rldistill.__all__[:6] == STAGES
    assert list(rldistill._EXPORTS) == rldistill.__all__


@pytest.mark.parametrize("name", rldistill.__all__)
def test_names_are_there_and_documented(name: str) -> None:
    value = getattr(rldistill, name)
    assert inspect.isfunction(value) or inspect.isclass(value)
    assert (value.__doc__ or "").strip()


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_typed(name: str) -> None:
    signature = inspect.signature(getattr(rldistill, name))
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in signature.parameters.values())


@pytest.mark.parametrize("name", ["collect", "distill"])
def test_importing_a_module_does_not_hide_its_function(name: str) -> None:
    module = importlib.import_module(f"rldistill.{name}")
    assert getattr(rldistill, name) is getattr(module, name)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(rldistill.__file__ or "").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == rldistill._EXPORTS


def test_import_is_lazy() -> None:
    code = "import sys, rldistill; print('torch' in sys.modules, 'gymnasium' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = rldistill.nonsense  # type: ignore[attr-defined]
