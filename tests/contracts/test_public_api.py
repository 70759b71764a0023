"""Public names of `import rldistill`, and what importing it costs."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import rldistill

SRC = Path(rldistill.__file__ or "").parent
STAGES = ["train_teacher", "load_policy", "collect", "distill", "evaluate", "write_report"]


def test_the_stages_are_public() -> None:
    assert {*STAGES} <= {*rldistill.__all__}


@pytest.mark.parametrize("name", rldistill.__all__)
def test_names_are_there_and_documented(name: str) -> None:
    value = getattr(rldistill, name)
    if name != "Mode":  # a Literal, which has no docstring
        assert callable(value) or inspect.ismodule(value)
        assert (value.__doc__ or "").strip()


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_typed(name: str) -> None:
    signature = inspect.signature(getattr(rldistill, name))
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in signature.parameters.values())


MODULES = sorted(
    ".".join(file.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__")
    for file in SRC.rglob("*.py")
    if file.name != "__main__.py"
)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_imported_by_its_name(name: str) -> None:
    """No function hides a package, as `rldistill.evaluate` once did."""
    module = importlib.import_module(name)
    parent, _, last = name.rpartition(".")
    assert not parent or getattr(importlib.import_module(parent), last) is module


def test_import_is_lazy() -> None:
    code = "import sys, rldistill; print('torch' in sys.modules, 'gymnasium' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="No rldistill attribute nonsense"):
        _ = rldistill.nonsense  # type: ignore[attr-defined]
