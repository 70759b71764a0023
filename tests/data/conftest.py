"""Datasets of Minari."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("minari", reason="needs the extra minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return module


def record_elsewhere(
    minari: Any,
    name: str,
    actions: Any,
    infos: dict[str, Any] | None = None,
    rewards: Any = None,
    data_format: str = "arrow",
) -> None:
    """Three episodes of four steps, of which the last is cut."""
    space: gymnasium.Space[Any] = actions
    space.seed(0)
    rng = np.random.default_rng(0)
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=rng.uniform(-1, 1, (5, 2)).astype(np.float32),
            actions=np.stack([space.sample() for _ in range(4)]),
            rewards=rng.integers(0, 9, 4).astype(np.float64) if rewards is None else rewards,
            terminations=[False] * 4,
            truncations=[False, False, False, True],
            infos={key: [value] * 5 for key, value in (infos or {}).items()},
        )
        for _ in range(3)
    ]
    box = gymnasium.spaces.Box(-1, 1, (2,))
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=box, action_space=space, data_format=data_format
    )
