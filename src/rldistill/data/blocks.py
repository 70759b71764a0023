"""Blocks: the few hundred steps of one stream that are written, hashed and resumed as a whole.

A block is one Parquet file with the rows of slot 0 in order of time, then those of slot 1, and so on. `kind` tells what
a row is: a step; where frames are stored, one of the few frames before the block, which stand before each slot's steps;
or, after them, the observation that a step led to where the next row does not show it, in the order of these steps.
Each block stands alone.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import sha256_file, write_atomic

ACTORS = ("teacher", "student", "random")
STEP, LEAD, FINAL = range(3)
LABELS = ("teacher", "next_teacher", "value", "next_value", "features")


@dataclass(frozen=True, order=True)
class BlockKey:
    """Which block: round of collection, stream, number within the stream."""

    round: int
    stream: int
    block: int

    @property
    def file(self) -> str:
        return f"blocks/round-{self.round:03d}-stream-{self.stream:03d}-block-{self.block:05d}.parquet"


@dataclass(frozen=True)
class Block:
    """Columns of a block, each `[rows, ...]`, and the hash of the observations that stand at its end.

    `exact` is false where the episodes that were open before it could not be taken up again after a loss. `states` are
    what recurrent policies remember at the block's end, `[slots, ...]`, by who they are.
    """

    columns: dict[str, NDArray[Any]]
    end_hash: str
    exact: bool = True
    states: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def successors(kind: NDArray[np.int8], ended: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each step of a block, the row that shows what it led to."""
    steps = np.flatnonzero(kind == STEP)
    out = steps + 1
    out[ended[steps] | (np.append(kind, LEAD)[out] != STEP)] = np.flatnonzero(kind == FINAL)
    return out


def write_block(path: Path, block: Block) -> str:
    """Write a block atomically; returns the SHA-256 of the file."""
    arrays = {name: _to_arrow(column) for name, column in sorted(block.columns.items())}
    shapes = {name: list(block.columns[name].shape[1:]) for name in arrays}
    metadata = {"schema": "2", "shapes": json.dumps(shapes), "end_hash": block.end_hash, "exact": str(int(block.exact))}
    if block.states:
        metadata["states"] = json.dumps({who: _packed(state) for who, state in block.states.items()})
    table = pa.table(arrays).replace_schema_metadata(metadata)

    def write(temporary: Path) -> None:
        pq.write_table(
            table, temporary, compression="zstd", use_dictionary=False, write_page_checksum=True, write_statistics=False
        )

    write_atomic(path, write)
    return sha256_file(path)


def read_block(path: Path, columns: list[str] | None = None) -> Block:
    """Read a block, or some of its columns; raises CorruptArtifactError if a page fails its checksum."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            shapes = json.loads(metadata[b"shapes"])
            table = file.read(columns)
            end_hash, exact = metadata[b"end_hash"].decode(), metadata[b"exact"] == b"1"
            states = {who: _unpacked(*packed) for who, packed in json.loads(metadata.get(b"states", b"{}")).items()}
    except FileNotFoundError:
        raise CorruptArtifactError(
            f"{path}: the block is missing; `rldistill collect FILE --resume` plays it again"
        ) from None
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise CorruptArtifactError(
            f"{path}: not a whole block ({error}); delete it, and `rldistill collect FILE --resume` plays it again"
        ) from None
    found = {name: _from_arrow(table[name], shapes[name]) for name in table.column_names}
    return Block(found, end_hash, exact, states)


def _packed(state: NDArray[np.float32]) -> tuple[list[int], str]:
    return list(state.shape), base64.b64encode(np.ascontiguousarray(state).tobytes()).decode()


def _unpacked(shape: list[int], text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(shape).copy()


def _to_arrow(column: NDArray[Any]) -> pa.Array:
    if column.ndim == 1:
        return pa.array(column)
    flat = np.ascontiguousarray(column).reshape(-1)
    width = int(np.prod(column.shape[1:]))
    if column.dtype == np.uint8:
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(column), [None, pa.py_buffer(flat)])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), width)


def _from_arrow(column: pa.ChunkedArray, shape: list[int]) -> NDArray[Any]:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    if not shape:
        values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
        return values
    if pa.types.is_fixed_size_binary(array.type):
        raw = np.frombuffer(array.buffers()[1], np.uint8)
        width = array.type.byte_width
        return raw[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), *shape)
    flat: NDArray[Any] = array.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(array), *shape)
