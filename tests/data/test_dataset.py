"""Datasets that are written by hand, block by block."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.heads import QValuesHead
from rldistill.core.spec import EnvConfig, FramePipeline, PolicySpec
from rldistill.data.blocks import FINAL, LEAD, STEP, Block, BlockKey, Columns
from rldistill.data.dataset import Dataset, action_gap, episode_rows, open_dataset
from rldistill.data.manifest import Manifest, Origin, Round, dataset_folder, store_block
from rldistill.io.atomic import write_json

SPEC = PolicySpec((1,), "float32", QValuesHead((2,)))
FRAMES = PolicySpec((2, 1, 1), "uint8", QValuesHead((2,)), frames=FramePipeline(1, 1, 2))


def make_block(rows: list[tuple[float, int, int, int, str]], first: int, spec: PolicySpec = SPEC) -> Block:
    """Return a block of rows (observation, kind, slot, episode, end); labels count the steps from `first`."""
    obs, kind, slot, episode, end = (np.array(column) for column in zip(*rows, strict=True))
    count = np.where(kind == STEP, first + np.cumsum(kind == STEP), 0)
    is_step = kind == STEP
    age = [(is_step[:i] & (slot[:i] == slot[i]) & (episode[:i] == episode[i])).sum() for i in range(len(kind))]
    columns: Columns = {
        "obs": obs.astype(spec.obs_dtype).reshape(-1, *([1, 1] if spec.frames else [1])),
        "kind": kind.astype(np.int8),
        "slot": slot.astype(np.int16),
        "episode": episode.astype(np.int32),
        "step": np.array(age, np.int32) + (1 if first and not spec.frames else 0) * ((slot == 0) & (episode == 1)),
        "action": count.astype(np.int64) % 2,
        "reward": count.astype(np.float32),
        "terminated": end == "terminated",
        "truncated": end == "truncated",
        "ended": end != "",
        "actor": np.zeros(len(kind), np.int8),
        "teacher": np.stack([count, -count], 1).astype(np.float32),
        "next_teacher": np.stack([count, 2 * count], 1).astype(np.float32),
        "value": count.astype(np.float32),
        "next_value": 10 * count.astype(np.float32),
    }
    return Block(columns, "hash")


# Two slots; episode 1 of slot 0 continues in the second block, with its second step.
FIRST = [
    (0.0, STEP, 0, 0, ""), (1.0, STEP, 0, 0, "terminated"), (2.0, STEP, 0, 1, ""), (1.5, FINAL, 0, 0, ""),
    (2.5, FINAL, 0, 0, ""), (10.0, STEP, 1, 0, ""), (11.0, STEP, 1, 0, ""), (12.0, STEP, 1, 0, "truncated"),
    (12.5, FINAL, 1, 0, ""),
]  # fmt: skip
SECOND = [
    (2.5, STEP, 0, 1, ""), (3.0, STEP, 0, 1, "truncated"), (3.5, FINAL, 0, 0, ""), (20.0, STEP, 1, 1, ""),
    (21.0, STEP, 1, 1, ""), (21.5, FINAL, 1, 0, ""),
]  # fmt: skip
OBS = [0.0, 1, 2, 10, 11, 12, 2.5, 3, 20, 21]
NEXT_OBS = [1.0, 1.5, 2.5, 11, 12, 12.5, 3, 3.5, 21, 21.5]


def write(folder: Path, blocks: list[tuple[BlockKey, Block]], spec: PolicySpec = SPEC) -> Path:
    rounds = {key.round: Round(envs_per_stream=2, teacher="t", inputs={}) for key, _ in blocks}
    manifest = Manifest.new(folder, Origin(env=EnvConfig("CartPole-v1"), spec=spec, teacher_spec=None), rounds)
    manifest.add_blocks(store_block(folder, key, block) for key, block in blocks)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys = BlockKey(0, 0, 0), BlockKey(0, 0, 1)
    return write(tmp_path / "dataset", [(keys[0], make_block(FIRST, 0)), (keys[1], make_block(SECOND, 6))])


def heldout_by_hand(data: Dataset) -> list[bool]:
    hashes = {}
    for episode in set(data.columns["episode"]):
        rows = sorted(np.flatnonzero(data.columns["episode"] == episode), key=lambda row: data.columns["step"][row])
        content = data.columns["action"][rows].tobytes() + data.columns["reward"][rows].tobytes()
        hashes[episode] = hashlib.sha256(content).digest()[:8]
    heldout = {
        episode: number != max(hashes.values())
        and (int.from_bytes(number, "big") < 0.1 * 2**64 or number == min(hashes.values()))
        for episode, number in hashes.items()
    }
    return [heldout[episode] for episode in data.columns["episode"]]


def test_blocks_are_read_as_transitions_by_hand(folder: Path) -> None:
    data, rows = Dataset.read([folder], gamma=0.5), np.arange(10)
    assert (len(data), data.num_steps, data.num_episodes) == (10, 10, 4)
    assert data.observations(rows)[:, 0].tolist() == OBS
    assert data.next_observations(rows)[:, 0].tolist() == NEXT_OBS
    assert data.columns["episode"].tolist() == [0, 0, 1, 2, 2, 2, 1, 1, 3, 3]
    assert data.columns["step"].tolist() == [0, 1, 0, 0, 1, 2, 1, 2, 0, 1]
    assert [part.tolist() for part in episode_rows(data.columns)] == [[0, 1], [2, 6, 7], [3, 4, 5], [8, 9]]
    assert {*data.columns} == {*make_block(FIRST, 0).columns, "return_to_go"} - {"obs", "kind", "slot", "ended"}
    # Episode 0 terminates: 1 + 2 / 2. The others have 1 / 2 of the next value at their end, which is 80, 60 or 100.
    expected = [2, 2, 3 + 31 / 2, 4 + 23 / 2, 5 + 36 / 2, 36, 7 + 48 / 2, 48, 9 + 60 / 2, 60]
    assert data.columns["return_to_go"].tolist() == expected
    assert data.heldout.tolist() == heldout_by_hand(data)
    assert 0 < data.heldout.sum() < 10
    assert data.row.dtype == data.next_row.dtype == data.columns["episode"].dtype == np.int32
    assert Dataset.read([folder]).columns["return_to_go"][0] == pytest.approx(1 + 0.99 * 2)


def test_returns_without_values_are_not_bootstrapped(tmp_path: Path) -> None:
    block = make_block(FIRST, 0)
    del block.columns["value"], block.columns["next_value"]
    data = Dataset.read([write(tmp_path, [(BlockKey(0, 0, 0), block)])], gamma=0.5)
    assert data.columns["return_to_go"].tolist() == [2, 2, 3, 4 + 8 / 2, 5 + 6 / 2, 6]
    assert data.advantage_scale() == 1
    batch = data.batch(np.arange(2))
    assert (batch.teacher.value, batch.teacher.features, batch.next_teacher.value) == (None, None, None)


@pytest.mark.parametrize("richer", [0, 1])
def test_labels_that_some_blocks_lack_are_left_out(tmp_path: Path, richer: int) -> None:
    blocks = [make_block(FIRST, 0), make_block(FIRST, 6)]
    blocks[richer].columns["features"] = np.ones((len(FIRST), 3), np.float32)
    folders = [write(tmp_path / str(i), [(BlockKey(0, 0, 0), block)]) for i, block in enumerate(blocks)]
    assert "features" in Dataset.read(folders[richer : richer + 1]).columns
    data = Dataset.read(folders)
    assert len(data) == 12
    assert "features" not in data.columns


def test_streams_rounds_and_datasets_have_their_own_episodes(folder: Path, tmp_path: Path) -> None:
    keys = [BlockKey(0, 0, 0), BlockKey(0, 1, 0), BlockKey(1, 0, 0)]
    other = write(tmp_path / "other", [(key, make_block(FIRST, number)) for number, key in enumerate(keys)])
    data = Dataset.read([folder, other])
    assert (len(data), data.num_steps, data.num_episodes) == (28, 28, 4 + 3 * 3)
    assert data.columns["episode"][10:].tolist() == [
        *[4, 4, 5, 6, 6, 6],
        *[7, 7, 8, 9, 9, 9],
        *[10, 10, 11, 12, 12, 12],
    ]
    assert data.observations(np.arange(28))[:, 0].tolist() == OBS + 3 * OBS[:6]
    assert data.next_observations(np.arange(28))[:, 0].tolist() == NEXT_OBS + 3 * NEXT_OBS[:6]
    first, second = (Dataset.read([other], only_round=number) for number in (0, 1))
    assert (len(first), len(second), second.num_steps) == (12, 6, 6)
    assert second.columns["reward"].tolist() == [3, 4, 5, 6, 7, 8]
    with pytest.raises(CorruptArtifactError, match="not complete"):
        Dataset.read([other], only_round=2)
    wider = write(
        tmp_path / "wider", [(keys[0], make_block(FIRST, 0))], dataclasses.replace(SPEC, head=QValuesHead((3,)))
    )
    with pytest.raises(SpecMismatchError, match=r"wider and .*dataset have different observations or labels"):
        Dataset.read([folder, wider])


def test_changed_blocks_are_found_unless_hashes_are_skipped(folder: Path) -> None:
    manifest = folder / "manifest.json"
    write_json(manifest, json.loads(manifest.read_text().replace(Manifest.read(folder).blocks[1].sha256, "0" * 64)))
    with pytest.raises(CorruptArtifactError, match=r"block-00001\.parquet: its bytes have changed"):
        Dataset.read([folder])
    assert len(Dataset.read([folder], verify=False)) == 10


def test_a_tenth_of_many_episodes_is_held_out(tmp_path: Path) -> None:
    rows = [(float(i), kind, 0, i, "terminated") for kind in (STEP, FINAL) for i in range(300)]
    data = Dataset.read([write(tmp_path, [(BlockKey(0, 0, 0), make_block(rows, 0))])])
    assert data.heldout.tolist() == heldout_by_hand(data)
    assert 15 < data.heldout.sum() < 45


def test_equal_episodes_alone_are_refused(tmp_path: Path) -> None:
    rows = [
        (0.0, STEP, 0, 0, "terminated"),
        (1.0, STEP, 0, 1, "terminated"),
        (0.5, FINAL, 0, 0, ""),
        (1.5, FINAL, 0, 0, ""),
    ]
    block = make_block(rows, 0)
    block.columns["reward"][:], block.columns["action"][:] = 1, 1
    write(tmp_path, [(BlockKey(0, 0, 0), block)])
    with pytest.raises(ConfigError, match="fewer than two distinct episodes"):
        Dataset.read([tmp_path])


def test_large_observations_stay_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 15 * 4  # rows of one number
    inside, outside = (Dataset.read([folder], memory_gb=(size + delta) / 1e9) for delta in (0.5, -0.5))
    assert not isinstance(inside.obs, np.memmap)
    assert isinstance(outside.obs, np.memmap)
    assert inside.obs.dtype == outside.obs.dtype == np.float32
    assert (inside.memory_gb, outside.memory_gb) == ((size + 0.5) / 1e9, (size - 0.5) / 1e9)
    np.testing.assert_array_equal(inside.obs, outside.obs)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "blocks"}
    for free in (size, size - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        if free == size:
            assert len(Dataset.read([folder], memory_gb=0.0)) == 10
            continue
        with pytest.raises(OSError, match="60 bytes are needed") as found:
            Dataset.read([folder], memory_gb=0.0)
        assert (found.value.errno, found.value.filename) == (errno.ENOSPC, str(folder))


def test_frames_are_stacked_within_their_episodes_by_hand(tmp_path: Path) -> None:
    rows = [
        (9, LEAD, 0, 0, ""), (10, STEP, 0, 0, ""), (11, STEP, 0, 0, "terminated"), (20, STEP, 0, 1, ""),
        (12, FINAL, 0, 0, ""), (21, FINAL, 0, 0, ""), (0, LEAD, 1, 0, ""), (30, STEP, 1, 0, ""), (31, STEP, 1, 0, ""),
        (32, STEP, 1, 0, ""), (33, FINAL, 1, 0, ""),
    ]  # fmt: skip
    block = make_block(rows, 0, FRAMES)
    block.columns["step"][1:3] += 1  # the episode began before the block, with the frame 9
    data = Dataset.read([write(tmp_path, [(BlockKey(0, 0, 0), block)], FRAMES)])
    assert (len(data), len(data.obs)) == (6, 11)
    stacks, following = data.observations(np.arange(6)), data.next_observations(np.arange(6))
    assert stacks.shape == (6, 2, 1, 1)
    assert stacks[:, :, 0, 0].tolist() == [[9, 10], [10, 11], [0, 20], [0, 30], [30, 31], [31, 32]]
    assert following[:, :, 0, 0].tolist() == [[10, 11], [11, 12], [20, 21], [30, 31], [31, 32], [32, 33]]
    assert following.is_contiguous(memory_format=torch.channels_last)
    assert data.next_observations(np.array([4, 0]))[:, :, 0, 0].tolist() == [[31, 32], [10, 11]]
    assert [len(batch.action) for batch in data.batches(np.arange(5), 2)] == [2, 2, 1]
    seen = data.seen_as(np.arange(12, dtype=np.float32).reshape(6, 2))
    assert (seen.spec.obs_shape, seen.spec.obs_dtype, seen.spec.frames) == ((2,), "float32", None)
    assert seen.observations(np.array([3])).tolist() == seen.next_observations(np.array([3])).tolist() == [[6, 7]]
    assert seen.columns is data.columns


def test_batches_have_all_labels_in_order(folder: Path) -> None:
    data, rows = Dataset.read([folder]), np.array([7, 0, 3])
    features = np.arange(20, dtype=np.float32).reshape(10, 2)
    data = dataclasses.replace(data, columns={**data.columns, "features": features})
    batch = data.batch(rows)
    assert batch.obs[:, 0].tolist() == [3, 0, 10]  # type: ignore[call-overload]
    assert batch.action.tolist() == [0, 1, 0]
    assert batch.reward.tolist() == [8, 1, 4]
    assert batch.return_to_go.tolist() == data.columns["return_to_go"][rows].tolist()
    assert batch.terminated.tolist() == [False] * 3
    assert data.batch(np.array([1])).terminated.tolist() == [True]
    assert batch.teacher.head == batch.next_teacher.head == SPEC.head
    assert batch.teacher.params.tolist() == [[8, -8], [1, -1], [4, -4]]
    assert batch.next_teacher.params.tolist() == [[8, 16], [1, 2], [4, 8]]
    assert batch.teacher.value is not None
    assert batch.teacher.features is not None
    assert batch.next_teacher.value is not None
    assert batch.teacher.value.tolist() == [8, 1, 4]
    assert batch.next_teacher.value.tolist() == [80, 10, 40]
    assert batch.teacher.features.tolist() == [[14, 15], [0, 1], [6, 7]]
    assert batch.weight.tolist() == [1, 1, 1]
    many = np.tile(np.arange(10), 4)[:35]
    parts: list[Any] = [*data.batches(many, 2)]
    assert [len(part.action) for part in parts] == [2] * 17 + [1]
    for name in ("obs", "reward", "return_to_go", "weight"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(data.batch(many), name))
    assert torch.equal(torch.cat([part.teacher.params for part in parts]), data.batch(many).teacher.params)
    assert all(part.teacher.head == SPEC.head for part in parts)


def test_measures_of_a_dataset_by_hand(folder: Path) -> None:
    data = Dataset.read([folder])
    assert data.spread(4).tolist() == [0, 3, 6, 9]
    assert data.spread(3).tolist() == [0, 4, 9]
    assert data.spread(99).tolist() == [*range(10)]
    # Gaps 1 and 4; with one legal action there is none.
    values = np.array([[1.0, 3.0, 2.0], [5.0, -1e8, -1e8], [0.0, 4.0, -1e8]])
    assert action_gap(values) == 2.5
    assert action_gap(values[1:2]) == 0
    assert data.action_gap() == np.mean(2 * np.arange(1, 11))
    expected = np.sqrt(np.mean((data.columns["return_to_go"] - np.arange(1, 11)) ** 2))
    assert data.advantage_scale() == pytest.approx(expected)
    # 16 bytes of an observation; 3 features take 12 bytes of each of 10 transitions, beside 15 rows of 4 bytes
    wide = dataclasses.replace(SPEC, obs_shape=(2, 2))
    for spec, num_features, memory, fits in (
        (wide, 3, 180.5, True), (wide, 3, 179.5, False), (wide, 4, 1e9, False), (SPEC, 1, 1e9, False)
    ):  # fmt: skip
        assert dataclasses.replace(data, spec=spec, memory_gb=memory / 1e9).has_room_for(num_features) == fits


def printed(command: str, folder: Path) -> Any:
    return json.loads(CliRunner().invoke(app, ["dataset", command, str(folder), "--json"]).stdout)


def test_summary_of_a_dataset(folder: Path) -> None:
    size = sum(path.stat().st_size for path in [folder / "manifest.json", *(folder / "blocks").iterdir()])
    expected = {
        "folder": str(folder), "env": "CartPole-v1", "steps": 10, "rounds": 1, "blocks": 2,
        "observations": "float32[1]", "labels": "q_values", "bytes": size, "exact": True,
    }  # fmt: skip
    assert printed("info", folder) == expected
    data = open_dataset(str(folder), gamma=0.0)
    assert data.columns["return_to_go"].tolist() == [*range(1, 11)]
    assert isinstance(open_dataset(folder, memory_gb=0.0).obs, np.memmap)
    heldout = int(data.heldout.sum())
    assert printed("check", folder.parent) == {
        **expected,
        "episodes": 4,
        "held-out steps": heldout,
        "state": "every block is whole",
    }
    assert dataset_folder(folder) == dataset_folder(folder.parent) == folder
    assert dataset_folder(folder.parent / "none") == folder.parent / "none"
    write(folder / "dataset", [(BlockKey(0, 0, 0), make_block(FIRST, 0))])
    assert dataset_folder(folder) == folder
