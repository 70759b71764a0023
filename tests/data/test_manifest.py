"""Manifests of datasets, and datasets that are made from others."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest

from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError
from rldistill.core.heads import QValuesHead
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.blocks import Block, BlockKey, read_block
from rldistill.data.manifest import Manifest, Origin, Round, block_entry, discard, store_block
from rldistill.data.merge import merge, open_derived
from rldistill.io.atomic import Mode
from rldistill.io.stage_inputs import StageInputs

from ..conftest import Reports

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
    assert manifest.digest == hashlib.sha256(" ".join(entry.sha256 for entry in entries).encode()).hexdigest()
    assert (manifest.blocks_of(0), manifest.blocks_of(1), manifest.blocks_of(5)) == (entries[:2], entries[2:], [])
    manifest.require_complete(1)
    with pytest.raises(CorruptArtifactError, match="the collection is not complete"):
        manifest.require_complete(2)
    replacement = store_block(tmp_path, BlockKey(0, 0, 1), small_block(9, exact=False))
    manifest.add_blocks([replacement])
    assert manifest.blocks == [entry, replacement]
    assert [block.exact for block in manifest.blocks] == [True, False]
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
    discard(folder)
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_rounds_are_added_to_the_manifest_of_the_folder(tmp_path: Path) -> None:
    inputs = {number: StageInputs("collect", {"seed": number}) for number in range(3)}

    def begin(number: int, teacher: str = "a", origin: Origin = ORIGIN, seed: int | None = None) -> Manifest:
        own = inputs[number if seed is None else seed]
        record = Round(envs_per_stream=1 + number, teacher=teacher, inputs=own.to_json())
        return Manifest.new(tmp_path, origin, {number: record}).begin_round(number, own)

    assert begin(0).rounds.keys() == Manifest.read(tmp_path).rounds.keys() == {0}
    Manifest.read(tmp_path).add_blocks([store_block(tmp_path, BlockKey(0, 0, 0), small_block(0))])
    for _ in range(2):  # new, and continued
        manifest = begin(1)
        assert manifest.rounds.keys() == {0, 1}
        assert (len(manifest.blocks), manifest.folder, manifest.env) == (1, tmp_path, ORIGIN.env)
        assert Manifest.read(tmp_path) == manifest
        assert [round.envs_per_stream for round in manifest.rounds.values()] == [1, 2]
    with pytest.raises(
        ConfigError, match=r"manifest\.json: rounds\.1: seed was 1, now it is 2\. .*`rldistill collect FILE"
    ):
        begin(1, seed=2)
    with pytest.raises(ConfigError, match="collected with the teacher a, now it is b"):
        begin(1, "b")
    spec = dataclasses.replace(SPEC, obs_shape=(3,))
    for name, change in (("env", {"env": EnvConfig("Acrobot-v1")}), ("spec", {"spec": spec})):
        with pytest.raises(
            ConfigError, match=rf"manifest\.json: {name}\.\w+ was .*`rldistill collect FILE --overwrite`"
        ):
            begin(2, origin=ORIGIN.model_copy(update=change))
    assert Manifest.read(tmp_path) == manifest
    with pytest.raises(ConfigError, match="the teacher a, now it is b"):
        begin(2, "b")


def test_round_is_continued_by_its_own_teacher_alone(tmp_path: Path) -> None:
    Manifest.new(tmp_path, ORIGIN, {0: ROUNDS[0], 1: ROUNDS[1]}).write()  # as merged
    with pytest.raises(ConfigError, match="the teacher b, now it is a"):
        Manifest.new(tmp_path, ORIGIN, {1: ROUNDS[0]}).begin_round(1, StageInputs("collect", {}))


def test_unknown_teacher_of_an_earlier_round_is_a_warning(tmp_path: Path) -> None:
    Manifest.new(tmp_path, ORIGIN, {0: ROUNDS[2]}).write()
    record = Manifest.new(tmp_path, ORIGIN, {1: ROUNDS[0]})
    with pytest.warns(UserWarning, match=r"manifest\.json: the teacher of its labels is unknown; expected a"):
        record.begin_round(1, StageInputs("collect", {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = Manifest.new(tmp_path / "other", ORIGIN, {1: ROUNDS[0]})
        (tmp_path / "other").mkdir()
        assert other.begin_round(1, StageInputs("collect", {})).rounds == {1: ROUNDS[0]}


def make_dataset(folder: Path, rewards: list[tuple[int, float]], origin: Origin = ORIGIN) -> Path:
    """Write one block for each round and reward."""
    keys = [BlockKey(number, 5, index) for index, (number, _) in enumerate(rewards)]
    blocks = [store_block(folder, key, small_block(reward)) for key, (_, reward) in zip(keys, rewards, strict=True)]
    Manifest.new(folder, origin, {number: ROUNDS[number] for number, _ in rewards}).add_blocks(blocks)
    return folder


def test_merged_rounds_follow_one_another(tmp_path: Path) -> None:
    sources = [make_dataset(tmp_path / "a", [(0, 1), (1, 2)]), make_dataset(tmp_path / "b", [(1, 3), (1, 4), (2, 5)])]
    reports = list[tuple[int, int]]()
    merge(sources, str(tmp_path / "out"), progress=Reports(lambda done, total: reports.append((done, total))))
    manifest = Manifest.read(tmp_path / "out")
    assert reports == [(2, 10), (4, 10), (6, 10), (8, 10), (10, 10)]
    assert manifest.rounds == {0: ROUNDS[0], 1: ROUNDS[1], 2: ROUNDS[1], 3: ROUNDS[2]}
    places = [(entry.round, entry.stream, entry.block) for entry in manifest.blocks]
    assert places == [(0, 5, 0), (1, 5, 1), (2, 5, 0), (2, 5, 1), (3, 5, 2)]
    assert [entry.file for entry in manifest.blocks] == [BlockKey(*place).file for place in places]
    rewards = [read_block(tmp_path / "out" / entry.file).columns["reward"][0] for entry in manifest.blocks]
    assert rewards == [1, 2, 3, 4, 5]
    manifest.check()
    assert (manifest.env, manifest.spec, manifest.teacher_spec) == (ORIGIN.env, SPEC, None)
    assert [len(Manifest.read(source).blocks) for source in sources] == [2, 3]


def test_datasets_that_do_not_belong_together_are_not_merged(tmp_path: Path) -> None:
    first, out = make_dataset(tmp_path / "first", [(0, 1)]), tmp_path / "out"
    spec = dataclasses.replace(SPEC, obs_shape=(3,))
    for name, change in (
        ("env.id", {"env": EnvConfig("Acrobot-v1")}),
        ("spec.obs_shape", {"spec": spec}),
        ("teacher_spec", {"teacher_spec": spec}),
    ):
        other = make_dataset(tmp_path / name, [(0, 2)], ORIGIN.model_copy(update=change))
        with pytest.raises(SpecMismatchError, match=rf"{name} and .*first cannot be merged: {name} is "):
            merge([first, other], out)
    again = make_dataset(tmp_path / "again", [(0, 7), (0, 1)])
    with pytest.raises(ConfigError, match=r"again: blocks/.*block-00001\.parquet is in .*first, too"):
        merge([first, again], out)
    with pytest.raises(ConfigError, match="found one dataset, expected at least two"):
        merge([first], out)
    empty = make_dataset(tmp_path / "empty", [])
    with pytest.raises(CorruptArtifactError, match="empty: the collection is not complete"):
        merge([first, empty], out)
    second = make_dataset(tmp_path / "second", [(0, 2)])
    with pytest.raises(ConfigError, match="must stay as it is"):
        merge([first, second], tmp_path, mode="overwrite")
    block = second / BlockKey(0, 5, 0).file
    block.write_bytes(block.read_bytes() + b" ")
    with pytest.raises(CorruptArtifactError, match="its bytes have changed"):
        merge([first, second], out)
    assert not out.exists()


def test_derived_datasets_are_not_continued(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume"), open_derived(tmp_path / "out", [], "resume"):
        pass
