"""Merge of several datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.spec import EnvConfig
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.data.merge import merge
from rldistill.envs.spaces import spec_from_env
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy

from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow

SMALL = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=32, epsilon=0.4)


def recurrent(env: EnvConfig = CARTPOLE, seed: int = 3) -> NetworkPolicy:
    torch.manual_seed(seed)
    return Actor(lstm=(6, 1), hidden=(5,), critic=(4,)).build(spec_from_env(env)).eval()


def test_merged_datasets_hold_the_steps_of_all(teacher: NetworkPolicy, tmp_path: Path) -> None:
    parts = [collect(CARTPOLE, teacher, SMALL, tmp_path / str(seed), seed=seed) for seed in range(3)]
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "two")
    merge([tmp_path / "two", tmp_path / "2"], tmp_path / "all")
    whole = Dataset.read([tmp_path / "all"])
    joined = Dataset.read([tmp_path / str(seed) for seed in range(3)])
    assert whole.num_episodes == sum(part.num_episodes for part in parts)
    for name, column in joined.columns.items():
        np.testing.assert_array_equal(whole.columns[name], column)
    rows = np.arange(len(whole))
    assert torch.equal(whole.next_observations(rows), joined.next_observations(rows))
    assert sorted(Manifest.read(tmp_path / "all").rounds) == [0, 1, 2]


def test_datasets_of_different_kinds_are_not_merged(teacher: NetworkPolicy, tmp_path: Path) -> None:
    collect(CARTPOLE, teacher, SMALL, tmp_path / "a")
    collect(CARTPOLE, recurrent(), SMALL, tmp_path / "b")
    with pytest.raises(SpecMismatchError, match=r"cannot be merged: spec\.head is Categorical.* and QValues"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    with pytest.raises(ConfigError, match="would count twice"):
        merge([tmp_path / "a", tmp_path / "a"], tmp_path / "out")
    with pytest.raises(ConfigError, match="at least two"):
        merge([tmp_path / "a"], tmp_path / "out")
    collect(CARTPOLE, teacher, SMALL, tmp_path / "c", seed=1)
    with pytest.raises(ConfigError, match=r"Choose another folder\."):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "a", mode="overwrite")
    block = next((tmp_path / "c" / "blocks").iterdir())
    block.write_bytes(block.read_bytes()[:-9])
    with pytest.raises(CorruptArtifactError, match=r"\.parquet"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
