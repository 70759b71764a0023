"""A short run of the fuzzer of each parser."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


def _load() -> Any:
    import sys

    spec = importlib.util.spec_from_file_location("fuzz", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("parser", ["run_file", "policy_json", "manifest", "blocks", "minari", "sb3_json", "results"])
def test_parser_raises_errors_of_ours_only(parser: str) -> None:
    if parser == "minari":
        pytest.importorskip("minari", reason="needs the extra minari")
    count, uncaught = _load().fuzz(parser, 60, tries=300)
    assert not uncaught
    assert count
