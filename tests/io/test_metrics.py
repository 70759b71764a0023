from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rldistill.io.atomic import read_jsonl
from rldistill.io.metrics import Metrics


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in found.Scalars(name)] if name in found.Tags()["scalars"] else []


def test_tensorboard_reads_the_rows_under_sb3s_names(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.keep(0)
    for step in (10, 20, 30):
        metrics.add({"step": step, "return": step / 2, "score": None, "entropy": 0.5})
    assert scalars(tmp_path, "rollout/ep_rew_mean") == [(10, 5.0), (20, 10.0), (30, 15.0)]
    assert scalars(tmp_path, "train/entropy") == [(10, 0.5), (20, 0.5), (30, 0.5)]
    assert scalars(tmp_path, "eval/mean_reward") == []
    metrics.keep(1)
    metrics.add({"step": 20, "return": 7.0})
    assert scalars(tmp_path, "rollout/ep_rew_mean") == [(10, 5.0), (20, 7.0)]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("file", ["metrics.jsonl", "curve.jsonl"])
def test_written_rows_replace_earlier_ones(tmp_path: Path, file: str) -> None:
    metrics = Metrics(tmp_path, file)
    metrics.write([{"step": 1, "mean": 2.0}, {"step": 2, "mean": 3.0}])
    metrics.write([{"step": 1, "mean": 2.0}])
    assert read_jsonl(tmp_path / file) == [{"step": 1, "mean": 2.0}]
    assert scalars(tmp_path, "eval/mean_reward") == [(1, 2.0)]
