"""Files of blocks, manifests, stacks of frames and windows of episodes, by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.heads import QValuesHead
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.blocks import Block, BlockKey, next_rows, read_block, write_block
from rldistill.data.dataset import Dataset
from rldistill.data.frames import Padding, stack_frames
from rldistill.data.manifest import Manifest, Origin, Round, block_entry, discard, open_derived, store_block
from rldistill.data.sequences import windows
from rldistill.io.atomic import Mode

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
    assert stacks.shape == (3, 3, 1, 1)
    assert stack_frames(frames, np.array([3]), np.array([7]), 2, padding)[:, :, 0, 0].tolist() == [[30, 31]]
    tall = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    assert torch.from_numpy(stack_frames(tall, np.array([1]), np.array([1]), 2, padding)).is_contiguous(
        memory_format=torch.channels_last
    )


SPEC = PolicySpec((1,), "float32", QValuesHead((2,)))
ORIGIN = Origin(env=EnvConfig("CartPole-v1"), spec=SPEC, teacher_spec=None)
ROUNDS = {
    number: Round(envs_per_stream=1, teacher=teacher, inputs={}) for number, teacher in enumerate(("a", "b", None))
}


def small_block(reward: float, exact: bool = True) -> Block:
    return Block({"kind": np.array([1, 0, 0, 2], np.int8), "reward": np.full(4, reward, np.float32)}, "", exact)


def test_manifests_count_and_replace_blocks(tmp_path: Path) -> None:
    manifest = Manifest.new(tmp_path, ORIGIN, ROUNDS)
    with pytest.raises(CorruptArtifactError, match="the collection is not complete"):
        manifest.require_complete()
    keys = [BlockKey(0, 0, 0), BlockKey(0, 3, 0), BlockKey(1, 0, 7)]
    entries = [store_block(tmp_path, key, small_block(number)) for number, key in enumerate(keys)]
    manifest.add_blocks(iter(entries[:2]))
    manifest.add_blocks(iter(entries[2:]))
    assert manifest.blocks == entries == Manifest.read(tmp_path).blocks
    entry = entries[2]
    path = tmp_path / keys[2].file
    assert entry == block_entry(tmp_path, keys[2], small_block(2))
    assert (entry.file, entry.round, entry.stream, entry.block) == (keys[2].file, 1, 0, 7)
    assert (entry.steps, entry.rows, entry.exact) == (2, 4, True)
    assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (manifest.num_steps, manifest.folder) == (6, tmp_path)
    assert all(block.exact for block in manifest.blocks)
    assert manifest.digest == hashlib.sha256(" ".join(entry.sha256 for entry in entries).encode()).hexdigest()
    assert (manifest.blocks_of(0), manifest.blocks_of(1), manifest.blocks_of(5)) == (entries[:2], entries[2:], [])
    manifest.require_complete(1)
    with pytest.raises(CorruptArtifactError, match="the collection is not complete"):
        manifest.require_complete(2)
    replacement = store_block(tmp_path, BlockKey(0, 0, 1), small_block(9, exact=False))
    manifest.add_blocks([replacement])
    assert manifest.blocks == [entry, replacement]
    assert not all(block.exact for block in manifest.blocks)
    manifest.check()
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CorruptArtifactError, match=r"block-00007\.parquet: its bytes have changed"):
        manifest.check()
    path.unlink()
    with pytest.raises(CorruptArtifactError, match=r"block-00007\.parquet: the block is missing"):
        manifest.check()


def test_teachers_of_rounds(tmp_path: Path) -> None:
    manifest = Manifest.new(tmp_path, ORIGIN, ROUNDS)
    for teacher, number in (("a", None), ("b", None), ("a", 0), ("b", 1), ("z", 2), ("a", 7)):
        manifest.require_teacher(teacher, number)
    for teacher, number, known in (("z", None, "a and b"), ("b", 0, "a"), ("a", 1, "b"), ("z", 7, "a and b")):
        with pytest.raises(ConfigError, match=f"collected with the teacher {known}, now it is {teacher}"):
            manifest.require_teacher(teacher, number)
    Manifest.new(tmp_path, ORIGIN, {0: ROUNDS[2]}).require_teacher("z")


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("mode", ["new", "overwrite"])
def test_failed_derivation_leaves_a_folder_only_if_it_was_there(tmp_path: Path, exists: bool, mode: Mode) -> None:
    source, folder = tmp_path / "source", tmp_path / "out"
    if exists:
        folder.mkdir()

    def derive(fail: bool) -> None:
        with open_derived(folder, [source], mode):
            Manifest.new(folder, ORIGIN, ROUNDS).add_blocks([store_block(folder, BlockKey(0, 0, 0), small_block(0))])
            if fail:
                raise KeyError

    with pytest.raises(KeyError):
        derive(fail=True)
    assert folder.exists() == exists
    assert not exists or not any(folder.iterdir())
    derive(fail=False)
    with pytest.raises(ConfigError, match="must stay as it is"), open_derived(folder, [source, folder], "overwrite"):
        pass
    (folder / "mine").touch()
    with pytest.raises(ConfigError, match="holds more than a dataset"), open_derived(folder, [source], "overwrite"):
        pass
    discard(folder, keep_folder=False)
    assert [path.name for path in folder.iterdir()] == ["mine"]


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


def test_windows_in_random_order_have_every_step_once() -> None:
    data = sequence_dataset([1 + number % 3 for number in range(12)])
    orders = []
    for seed in (0, 0, 1):
        parts = [*windows(data, np.arange(24), 4, 3, np.random.default_rng(seed))]
        steps = torch.cat([part.batch.obs[..., 0][part.batch.weight > 0] for part in parts])  # type: ignore[call-overload]
        assert sorted(steps.tolist()) == sorted(data.obs[:, 0].tolist())
        orders.append(steps.tolist())
    assert orders[0] == orders[1] != orders[2]
