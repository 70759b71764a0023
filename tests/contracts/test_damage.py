"""Sample of `benchmarks/damage.py`: damaged files of this package are refused in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "damage.py"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("damage", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damage_is_never_silent_and_no_traceback(benchmark: Any, tmp_path: Path) -> None:
    artifacts = benchmark.make_artifacts(tmp_path)
    assert len(artifacts) == 11
    for number, (name, (path, read)) in enumerate(artifacts.items()):
        read(path)
        found = benchmark.damage(path, read, 20, 8, np.random.default_rng(number))
        assert found == {"refused": 28, "silent": 0, "tracebacks": 0}, name
        read(path)
