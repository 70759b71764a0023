from __future__ import annotations

import math
from pathlib import Path

import pytest

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import read_jsonl
from rldistill.io.metrics import Metrics


def test_rows_after_those_that_are_kept_are_dropped(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.keep(0)
    for step in (10, 20, 30):
        metrics.add({"step": step, "return": step / 2, "score": None, "entropy": math.inf})
    assert read_jsonl(metrics.path)[1] == {"step": 20, "return": 10.0, "score": None, "entropy": None}
    metrics.keep(1)
    metrics.add({"step": 20, "return": 7.0})
    metrics.end()
    assert [(row["step"], row["return"]) for row in read_jsonl(metrics.path)] == [(10, 5.0), (20, 7.0)]
    with pytest.raises(CorruptArtifactError, match="found 2 rows, expected at least 3"):
        metrics.keep(3)


@pytest.mark.parametrize("file", ["metrics.jsonl", "curve.jsonl"])
def test_written_rows_replace_earlier_ones(tmp_path: Path, file: str) -> None:
    metrics = Metrics(tmp_path, file)
    metrics.write([{"step": 1, "mean": 2.0}, {"step": 2, "mean": 3.0}])
    metrics.write([{"step": 1, "mean": 2.0}])
    assert read_jsonl(tmp_path / file) == [{"step": 1, "mean": 2.0}]
