"""Blocks with the right hash and the wrong content, and manifests that differ from their blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rldistill.core.errors import CorruptArtifactError
from rldistill.core.heads import QValuesHead
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data import blocks
from rldistill.data.blocks import FINAL, STEP, Block, BlockKey, Columns
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import FILE, Manifest, Origin, Round, store_block
from rldistill.io.atomic import read_json, sha256_file, write_json

SPEC = PolicySpec((3,), "float32", QValuesHead((2,)))
KEY = BlockKey(0, 0, 0)


def make_columns() -> Columns:
    """Return two slots of four steps, each with an episode of two steps and the begin of another."""
    kind = np.array([STEP] * 4 + [FINAL] * 2, np.int8)
    rows = {
        "kind": kind, "slot": np.zeros(6, np.int16), "episode": np.array([0, 0, 1, 1, 0, 0], np.int32),
        "step": np.array([0, 1, 0, 1, 0, 0], np.int32), "action": np.array([0, 1, 1, 0, 0, 0]),
        "reward": np.ones(6, np.float32), "terminated": np.array([0, 1, 0, 0, 0, 0], bool),
        "truncated": np.zeros(6, bool), "ended": np.array([0, 1, 0, 0, 0, 0], bool), "actor": np.zeros(6, np.int8),
    }  # fmt: skip
    columns = {name: np.tile(column, 2) for name, column in rows.items()}
    columns["slot"][6:] = 1
    columns["action"][6:] = [1, 1, 0, 0, 0, 0]
    rng = np.random.default_rng(0)
    return columns | {
        "obs": rng.normal(size=(12, 3)).astype(np.float32),
        **{name: rng.normal(size=(12, 2)).astype(np.float32) for name in ("teacher", "next_teacher")},
        **{name: rng.normal(size=12).astype(np.float32) for name in ("value", "next_value")},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rounds = {0: Round(envs_per_stream=2, teacher="t", inputs={})}
    manifest = Manifest.new(tmp_path, Origin(env=EnvConfig("X-v0"), spec=SPEC, teacher_spec=None), rounds)
    manifest.add_blocks([store_block(tmp_path, KEY, Block(make_columns(), ""))])
    return tmp_path


def update_hash(folder: Path) -> None:
    document = read_json(folder / FILE)
    document["blocks"][0]["sha256"] = sha256_file(folder / KEY.file)
    write_json(folder / FILE, document)


def require_refused(folder: Path, message: str) -> None:
    with pytest.raises(CorruptArtifactError, match=message) as error:
        Dataset.read([folder])
    assert "\n" not in str(error.value)


def test_the_block_itself_is_read(folder: Path) -> None:
    assert len(Dataset.read([folder])) == 8


NAN = {"obs": 2, "teacher": 3, "next_teacher": 0, "value": 1, "next_value": 2, "reward": 0}


@pytest.mark.parametrize("name", NAN)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(folder: Path, name: str, value: float) -> None:
    columns = make_columns()
    columns[name][NAN[name]] = value
    store_block(folder, KEY, Block(columns, ""))
    update_hash(folder)
    require_refused(folder, rf"00000\.parquet: not a complete block \({name} holds NaN or infinite numbers\)")


def set_at(name: str, value: Any, row: int = 1) -> Callable[[Columns], Columns]:
    def change(columns: Columns) -> Columns:
        columns[name][row] = value
        return columns

    return change


CHANGES: dict[str, tuple[Callable[[Columns], Columns], str]] = {
    "missing": (lambda c: {name: column for name, column in c.items() if name != "ended"}, "column ended is missing"),
    "no kind": (lambda c: {name: column for name, column in c.items() if name != "kind"}, "kind"),
    "extra": (lambda c: {**c, "more": c["value"]}, "the column more is unknown"),
    "wide": (lambda c: {**c, "teacher": c["obs"]}, r"teacher is of shape \[3\], expected \[2\]"),
    "flat": (lambda c: {**c, "obs": c["value"]}, r"obs is of shape \[\], expected \[3\]"),
    "deep": (lambda c: {**c, "reward": c["value"][:, None]}, r"reward is of shape \[1\], expected \[\]"),
    "dtype": (lambda c: {**c, "obs": c["obs"].astype(np.float64)}, "obs is of float64, expected float32"),
    "flags": (lambda c: {**c, "ended": c["ended"].astype(np.int8)}, "ended is of int8, expected bool"),
    "fractions": (lambda c: {**c, "slot": c["slot"] + 0.5}, "slot holds"),
    "action type": (lambda c: {**c, "action": c["value"]}, "action is of float32"),
    "action": (set_at("action", 2), "action holds other numbers than the integers from 0 to 1"),
    "negative action": (set_at("action", -1), "action holds other numbers"),
    "kind": (set_at("kind", 3), "kind holds 0 to 3"),
    "actor": (set_at("actor", -1), "actor holds -1 to 0"),
    "slot": (set_at("slot", 2), "slot holds 0 to 2"),
    "moved": (set_at("slot", 1), "different numbers of steps"),
    "episode": (set_at("episode", -5), "episode holds -5"),
    "fewer steps": (set_at("kind", FINAL), "not a complete block"),
    "ends": (set_at("ended", True, 0), "not a complete block"),
    "rows": (lambda c: {name: column[:6] for name, column in c.items()}, "it has 6 rows, expected 12"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_columns_that_do_not_fit_are_refused(folder: Path, name: str) -> None:
    change, message = CHANGES[name]
    entry_columns = change(make_columns())
    blocks.write_block(folder / KEY.file, Block(entry_columns, ""))
    update_hash(folder)
    require_refused(folder, message)


ARROW: dict[str, Callable[[int], pa.Array]] = {
    "text": lambda rows: pa.array(["x"] * rows),
    "dates": lambda rows: pa.array([0] * rows, pa.date32()),
    "nested": lambda rows: pa.array([{"a": 1}] * rows),
    "lists": lambda rows: pa.array([[1.0]] * rows),
    "lists of text": lambda rows: pa.array([["x"]] * rows, pa.list_(pa.string(), 1)),
    "decimals": lambda rows: pa.array([1] * rows).cast(pa.decimal128(25)),
    "nulls": lambda rows: pa.array([None] * rows, pa.float32()),
    "null type": lambda rows: pa.nulls(rows),
    "dictionary": lambda rows: pa.array(["x"] * rows).dictionary_encode(),
}


@pytest.mark.parametrize("kind", ARROW)
@pytest.mark.parametrize("name", ["reward", "obs", "kind", "teacher"])
def test_other_types_of_arrow_are_refused(folder: Path, kind: str, name: str) -> None:
    table = pq.read_table(folder / KEY.file)
    changed = table.set_column(table.column_names.index(name), name, ARROW[kind](len(table)))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), folder / KEY.file)
    update_hash(folder)
    require_refused(folder, r"00000\.parquet: not a complete block .*Delete it, and collect it again")


SHAPES = ["[]", "{", "3", '{"obs": 3}', '{"obs": [-3]}', '{"obs": ["3"]}', '{"obs": [1e400]}', "[" * 9_999, "\udcff"]


@pytest.mark.parametrize("text", SHAPES, ids=range(len(SHAPES)))
@pytest.mark.parametrize("key", ["shapes", "states"])
def test_other_metadata_is_refused(folder: Path, key: str, text: str) -> None:
    table = pq.read_table(folder / KEY.file)
    metadata = {**table.schema.metadata, key.encode(): text.encode("utf-8", "surrogateescape")}
    pq.write_table(table.replace_schema_metadata(metadata), folder / KEY.file)
    update_hash(folder)
    if key == "states" and text in ("[]",):
        return
    require_refused(folder, r"00000\.parquet: not a complete block")


@pytest.mark.parametrize("error", [MemoryError("of Python"), pa.ArrowMemoryError("malloc of 99 failed")])
def test_want_of_memory_is_no_damage(folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(blocks, "_to_numpy", fail)
    with pytest.raises(MemoryError):
        Dataset.read([folder])


def test_failure_of_the_system_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(blocks, "_to_numpy", fail)
    with pytest.raises(OSError, match="Input/output error") as error:
        Dataset.read([folder])
    assert error.value.filename == str(folder / KEY.file)


def change_entry(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["blocks"][0].update({name: value})


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "rows": (change_entry("rows", 13), "it has 12 rows, expected 13"),
    "steps": (change_entry("steps", 7), "it has 12 rows and 8 steps, expected 12 and 7"),
    "more steps": (change_entry("steps", 13), "more steps than rows"),
    "round": (change_entry("round", 1), "is not the file of"),
    "stream": (change_entry("stream", 1), "is not the file of"),
    "block": (change_entry("block", 1), "is not the file of"),
    "file": (change_entry("file", "blocks/a.parquet"), "is not the file of"),
    "outside": (change_entry("file", "../a.parquet"), "blocks.0.file"),
    "digits": (change_entry("rows", 10**400), r"blocks\.0\.rows"),
    "text": (change_entry("rows", "12"), r"blocks\.0\.rows"),
    "twice": (lambda d: d["blocks"].append(d["blocks"][0]), "is there twice"),
    "no round": (lambda d: d["rounds"].clear(), "in no round"),
    "slots": (lambda d: d["rounds"]["0"].update(envs_per_stream=1), "slot holds 0 to 1"),
    "head": (lambda d: d["spec"]["head"].update(nvec=[3]), r"teacher is of shape \[2\], expected \[3\]"),
    "observations": (lambda d: d["spec"].update(obs_shape=[4]), r"obs is of shape \[3\], expected \[4\]"),
    "teacher": (lambda d: d.update(teacher_spec=d["spec"]), "column teacher_obs is missing"),
    "surplus": (lambda d: d.update(more=1), "more"),
    "seed": (lambda d: d["env"].update(id=3), "env"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_differ_from_their_blocks_are_refused(folder: Path, name: str) -> None:
    change, message = MANIFESTS[name]
    document = read_json(folder / FILE)
    change(document)
    write_json(folder / FILE, document)
    require_refused(folder, message)
