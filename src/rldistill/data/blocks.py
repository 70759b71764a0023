"""Blocks: a few hundred steps of one stream, which are written, hashed and resumed as a whole.

A block is one Parquet file with the rows of slot 0 in order of time, then those of slot 1, and so on. Its column `kind`
distinguishes steps, the few frames before the steps of each slot (if frames are stored), and, after all steps, the next
observations that no following row has. Each block can be read alone.
"""

import base64
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rldistill.core.errors import CorruptArtifactError, error_text
from rldistill.io.atomic import write_atomic
from rldistill.io.untrusted import require_regular

Columns = dict[str, NDArray[Any]]
ACTORS = ("teacher", "student", "random")
STEP, LEAD, FINAL = range(3)
"""Kinds of rows: a step, a frame before the block, and a next observation."""
LABELS = ("teacher", "next_teacher", "value", "next_value", "features")
LABELED = "labeled"
"""Column that is False for steps without a label; there is none if all steps have one."""
HELDOUT, RETURN_TO_GO = "heldout", "return_to_go"
"""Columns of condensed data, whose steps stand alone: elsewhere, both are computed from whole episodes."""
MEMBERS, MEMBER = "members", "member"
"""Columns of a committee: the params of all members, and the number of the member that acts in the episode."""
TEACHER_OBS = "teacher_obs"
"""Column of the observations of the teacher, if they differ from those of the student and are stored."""
RESUME = "`rldistill collect FILE --resume`"
BROKEN = f"not a complete block ({{}}). Delete it, and collect it again: {RESUME}."


@dataclass(frozen=True, order=True)
class BlockKey:
    """Place of a block: round of collection, stream, number within the stream."""

    round: int
    stream: int
    block: int

    @property
    def file(self) -> str:
        """Path of the block below the folder of the dataset."""
        return f"blocks/round-{self.round:03d}-stream-{self.stream:03d}-block-{self.block:05d}.parquet"


@dataclass(frozen=True)
class Block:
    """Content of a block.

    Attributes:
        columns: Columns, `[rows, ...]`.
        end_hash: Hash of the observations after the last step.
        exact: False if open episodes before the block could not be continued after an interruption.
        states: Recurrent states after the last step, `[slots, ...]`, by the name of the policy.
    """

    columns: Columns
    end_hash: str
    exact: bool = True
    states: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def next_rows(kind: NDArray[np.int8], ended: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for each step of a block, the row with its next observation."""
    steps = np.flatnonzero(kind == STEP)
    rows = steps + 1
    rows[ended[steps] | (np.append(kind, LEAD)[rows] != STEP)] = np.flatnonzero(kind == FINAL)
    return rows


def write_block(path: Path, block: Block) -> None:
    """Write a block atomically."""
    arrays = {}
    for name, column in sorted(block.columns.items()):
        flat, width = np.ascontiguousarray(column).reshape(-1), math.prod(column.shape[1:])
        if column.ndim == 1:
            arrays[name] = pa.array(column)
        elif column.dtype == np.uint8:
            buffers = [None, pa.py_buffer(flat)]
            arrays[name] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(column), buffers)
        else:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
    shapes = {name: list(block.columns[name].shape[1:]) for name in arrays}
    metadata = {"schema": "2", "shapes": json.dumps(shapes), "end_hash": block.end_hash, "exact": str(int(block.exact))}
    if block.states:
        texts = {name: base64.b64encode(state.tobytes()).decode() for name, state in block.states.items()}
        metadata["states"] = json.dumps({name: (block.states[name].shape, text) for name, text in texts.items()})
    table = pa.table(arrays).replace_schema_metadata(metadata)

    def write(temporary: Path) -> None:
        pq.write_table(
            table, temporary, compression="zstd", use_dictionary=False, write_page_checksum=True, write_statistics=False
        )

    write_atomic(path, write)


def read_block(path: Path, columns: list[str] | None = None) -> Block:
    """Read a block, or some of its columns; raise CorruptArtifactError if it is missing or damaged."""
    with _open(path) as file:
        metadata = file.schema_arrow.metadata or {}
        shapes = json.loads(metadata[b"shapes"])
        _require_arrays(file.schema_arrow, shapes)
        table = file.read(columns)
        if any(column.null_count for column in table.columns):
            raise ValueError("a column has missing values")
        end_hash, exact = metadata[b"end_hash"].decode(), metadata[b"exact"] == b"1"
        states = {
            name: np.frombuffer(base64.b64decode(text), np.float32).reshape(shape).copy()
            for name, (shape, text) in json.loads(metadata.get(b"states", b"{}")).items()
        }
        content = {name: _to_numpy(table[name], shapes[name]) for name in table.column_names}
        return Block(content, end_hash, exact, states)


def count_rows(path: Path) -> int:
    """Return the number of rows of a block; raise CorruptArtifactError if it is missing or damaged."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a block; raise errors of its content as CorruptArtifactError, but those of the system as they are."""
    try:
        require_regular(path)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError:
        raise CorruptArtifactError(f"{path}: the block is missing. Collect it again: {RESUME}.") from None
    except MemoryError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RecursionError, AttributeError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise CorruptArtifactError(f"{path}: {BROKEN.format(error_text(error))}") from None


def _require_arrays(schema: pa.Schema, shapes: Any) -> None:
    """Raise ValueError if a column is of a type that `write_block` never writes, or does not have its shape."""
    for column in schema:
        kind, shape = column.type, shapes[column.name]
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"the shape of {column.name} is not one of an array")
        width, number = 1, kind
        if pa.types.is_fixed_size_binary(kind):
            width, number = kind.byte_width, pa.uint8()
        elif pa.types.is_fixed_size_list(kind):
            width, number = kind.list_size, kind.value_type
        plain = pa.types.is_boolean(number) or pa.types.is_integer(number) or pa.types.is_floating(number)
        if not plain or width != math.prod(shape) or bool(shape) == (number is kind):
            raise ValueError(f"{column.name} is of {kind}, which is no array of shape {shape}")


def _to_numpy(column: pa.ChunkedArray, shape: list[int]) -> NDArray[Any]:
    array = column.combine_chunks()
    if not shape:
        values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    elif pa.types.is_fixed_size_binary(array.type):
        values = np.frombuffer(array.buffers()[1], np.uint8)
        values = values[array.offset * array.type.byte_width :][: len(array) * array.type.byte_width]
    else:
        values = array.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(array), *shape)
