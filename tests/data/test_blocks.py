"""Files of blocks, stacks of frames and windows of episodes, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rldistill.core.errors import CorruptArtifactError
from rldistill.core.heads import QValuesHead
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import Block, BlockKey, next_rows, read_block, write_block
from rldistill.data.dataset import Dataset
from rldistill.data.frames import Padding, stack_frames
from rldistill.data.sequences import windows

COLUMNS = {
    "kind": np.array([0, 0, 2], np.int8),
    "ended": np.array([False, True, False]),
    "reward": np.array([0.5, -1.0, 0.0], np.float32),
    "pixels": np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4),
    "state": np.arange(3 * 2 * 2, dtype=np.float32).reshape(3, 2, 2),
    "choices": np.arange(6).reshape(3, 2),
}
STATES = {"student": np.arange(4, dtype=np.float32).reshape(2, 2), "teacher": np.ones((1, 3), np.float32)}


def test_next_rows_by_hand() -> None:
    # slot 0: a lead, steps in rows 1 to 3, of which row 2 ends an episode; slot 1: rows 6 and 7, both ending
    kind = np.array([1, 0, 0, 0, 2, 2, 0, 0, 2, 2], np.int8)
    ended = np.array([0, 0, 1, 0, 0, 0, 1, 1, 0, 0], bool)
    assert next_rows(kind, ended).tolist() == [2, 4, 5, 8, 9]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("states", [{}, STATES], ids=["no states", "states"])
def test_blocks_are_read_as_they_were_written(tmp_path: Path, exact: bool, states: Any) -> None:
    path = tmp_path / "some" / "block.parquet"
    write_block(path, Block(COLUMNS, "a hash", exact, states))
    block = read_block(path)
    assert (block.end_hash, block.exact, block.states.keys()) == ("a hash", exact, states.keys())
    assert block.columns.keys() == COLUMNS.keys()
    for found, expected in [(block.columns[name], COLUMNS[name]) for name in COLUMNS]:
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    for name, state in states.items():
        np.testing.assert_array_equal(block.states[name], state)
        block.states[name] += 1  # states can be written to
    assert [*read_block(path, ["reward", "pixels"]).columns] == ["reward", "pixels"]
    # These decide the bytes of a block.
    metadata = pq.read_metadata(path)
    assert metadata.metadata[b"schema"] == b"2"
    for chunk in map(metadata.row_group(0).column, range(metadata.num_columns)):
        assert (chunk.compression, chunk.is_stats_set, chunk.has_dictionary_page) == ("ZSTD", False, False)


def test_blocks_have_the_same_bytes_for_any_order_of_columns(tmp_path: Path) -> None:
    for name, columns in (("one", COLUMNS), ("two", dict(reversed(COLUMNS.items())))):
        write_block(tmp_path / name, Block(columns, ""))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_missing_and_changed_blocks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "block.parquet"
    with pytest.raises(CorruptArtifactError, match=r"block\.parquet: the block is missing"):
        read_block(path)
    write_block(path, Block({"x": np.random.default_rng(0).normal(size=2_000)}, ""))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[5_000] ^= 1  # in a page, which only its checksum protects
    for changed in (whole[:-9], bytes(flipped), b""):
        path.write_bytes(changed)
        with pytest.raises(CorruptArtifactError, match="not a complete block"):
            read_block(path)


def test_names_of_blocks() -> None:
    assert BlockKey(1, 22, 333).file == "blocks/round-001-stream-022-block-00333.parquet"
    assert sorted([BlockKey(1, 0, 0), BlockKey(0, 1, 0), BlockKey(0, 0, 5)])[0] == BlockKey(0, 0, 5)


@pytest.mark.parametrize(("padding", "first"), [("zero", 0), ("repeat", 40)])
def test_stacks_of_a_ring_of_two_slots_by_hand(padding: Padding, first: int) -> None:
    # Rows alternate between two slots. Slot 0 has the frames 20, 30 in rows 0, 2 and, older, 40 in row 4.
    frames = np.array([20, 21, 30, 31, 40, 41], np.uint8).reshape(6, 1, 1)
    stacks = stack_frames(frames, np.array([2, 4, 5]), np.array([2, 0, 9]), 3, padding, stride=2)
    assert stacks[:, :, 0, 0].tolist() == [[40, 20, 30], [first, first, 40], [21, 31, 41]]
    assert (stacks.shape, stacks.dtype) == ((3, 3, 1, 1), np.uint8)
    assert stack_frames(frames, np.array([3]), np.array([7]), 2, padding)[:, :, 0, 0].tolist() == [[30, 31]]
    tall = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    assert torch.from_numpy(stack_frames(tall, np.array([1]), np.array([1]), 2, padding)).is_contiguous(
        memory_format=torch.channels_last
    )


SPEC = PolicySpec((1,), "float32", QValuesHead((2,)))


def sequence_dataset(lengths: list[int], first_step: int = 0) -> Dataset:
    """Return a dataset whose observations are 10 * episode + step, with the rows of all episodes in turn."""
    numbers = sorted(((step, episode) for episode, count in enumerate(lengths) for step in range(count)))
    step, episode = np.array(numbers).T
    count, rows = len(numbers), np.arange(len(numbers))
    zeros = np.zeros(count, np.float32)
    columns: dict[str, Any] = dict.fromkeys(("reward", "return_to_go"), zeros) | {
        "step": step + first_step, "episode": episode, "action": rows, "terminated": zeros > 0,
        "teacher": np.zeros((count, 2), np.float32), "next_teacher": np.zeros((count, 2), np.float32),
    }  # fmt: skip
    obs = (10 * episode + step).astype(np.float32)[:, None]
    return Dataset(SPEC, columns, obs, rows, rows, zeros > 0, count)


def test_windows_by_hand() -> None:
    data = sequence_dataset([4, 2, 1, 5])
    rows = np.flatnonzero(data.columns["episode"] < 3)
    first, second = windows(data, rows, 3, 2)
    # Lanes: episode 0, and episodes 1 and 2 with one step of padding
    assert first.batch.obs[..., 0].T.tolist() == [[0, 1, 2], [10, 11, 20]]  # type: ignore[call-overload]
    assert first.batch.action.T.tolist() == [[0, 4, 7], [1, 5, 2]]
    assert first.starts.T.tolist() == [[True, False, False], [True, False, True]]
    assert first.batch.weight.T.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert second.batch.obs[0, 0, 0] == 3  # type: ignore[call-overload]
    assert second.starts.tolist() == [[False, False]]
    assert second.batch.weight.tolist() == [[1, 0]]
    assert (first.progress, second.progress) == (0, 0.75)
    assert first.batch.teacher.params.shape == (3, 2, 2)
    assert first.batch.weight.dtype == torch.float32
    assert first.batch.teacher.head == SPEC.head


def test_windows_fill_the_shortest_lane_and_no_lane_stays_empty() -> None:
    data = sequence_dataset([2, 3, 1, 1], first_step=5)
    (window,) = windows(data, np.arange(7), 9, 2)
    # Episode 2 joins episode 0, and episode 3 the first of the equal lanes.
    assert [[x for x, w in zip(lane, weight, strict=True) if w] for lane, weight in zip(
        window.batch.obs[..., 0].T.tolist(), window.batch.weight.T.tolist(), strict=True  # type: ignore[call-overload]
    )] == [[0, 1, 20, 30], [10, 11, 12]]  # fmt: skip
    assert window.starts.T.tolist() == [[True, False, True, True], [True, False, False, False]]
    (wide,) = windows(data, np.arange(7), 9, 99)
    assert wide.batch.weight.shape == (3, 4)


@pytest.mark.parametrize("episode", [0, 1, 2])
def test_windows_of_a_single_episode(episode: int) -> None:
    data = sequence_dataset([3, 3, 3])
    (window,) = windows(data, np.flatnonzero(data.columns["episode"] == episode), 9, 2)
    assert window.batch.obs[..., 0].T.tolist() == [[10 * episode + step for step in range(3)]]  # type: ignore[call-overload]


def test_windows_in_random_order_have_every_step_once() -> None:
    data = sequence_dataset([1 + number % 3 for number in range(12)])
    orders = []
    for seed in (0, 0, 1):
        parts = [*windows(data, np.arange(24), 4, 3, np.random.default_rng(seed))]
        steps = torch.cat([part.batch.obs[..., 0][part.batch.weight > 0] for part in parts])  # type: ignore[call-overload]
        assert sorted(steps.tolist()) == sorted(data.obs[:, 0].tolist())
        orders.append(steps.tolist())
    assert orders[0] == orders[1] != orders[2]
