"""Blocks: a few hundred steps of one stream, which are written, hashed and resumed as a whole.

A block is one Parquet file with the rows of slot 0 in order of time, then those of slot 1, and so on. Its column `kind`
distinguishes steps, the few frames before the steps of each slot (if frames are stored), and, after all steps, the next
observations that no following row has. Each block can be read alone. Its content is checked against the manifest, which
a hash cannot replace: it is that of any writer.
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

from rldistill.core.entries import is_finite
from rldistill.core.errors import CorruptArtifactError, error_text
from rldistill.core.heads import ActionHead
from rldistill.core.spec import PolicySpec
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
FLAGS = ("terminated", "truncated", "ended")
COUNTS = ("slot", "episode", "step")


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


def require_content(
    columns: Columns, spec: PolicySpec, teacher_spec: PolicySpec | None, slots: int, condensed: bool = False
) -> None:
    """Raise ValueError if the columns of a block are not those of `spec`, or hold impossible numbers."""
    shapes = _shapes(spec, teacher_spec) | (dict.fromkeys((HELDOUT, RETURN_TO_GO), ()) if condensed else {})
    optional = {
        "value": (),
        "next_value": (),
        LABELED: (),
        MEMBER: (),
        "features": columns.get("features", np.zeros((1, 1))).shape[1:],
    }
    for name in [*shapes, *columns]:
        if name not in columns:
            raise ValueError(f"the column {name} is missing")
        expected = (shapes | optional).get(name)
        if expected is None:
            raise ValueError(f"the column {name} is unknown")
        column = columns[name]
        if column.shape[1:] != expected:
            raise ValueError(f"{name} is of shape {list(column.shape[1:])}, expected {list(expected)}")
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise ValueError(f"{name} holds NaN or infinite numbers")
    for name, dtype in _dtypes(spec, teacher_spec, columns).items():
        if columns[name].dtype != dtype:
            raise ValueError(f"{name} is of {columns[name].dtype}, expected {dtype}")
    for name, own in (("obs", spec), ("teacher_obs", teacher_spec)):
        if own is not None and not is_finite(columns[name], own):  # of a dict, which may be stored as bytes
            raise ValueError(f"{name} holds NaN or infinite numbers")
    limits = {"kind": len((STEP, LEAD, FINAL)), "actor": len(ACTORS), "slot": slots, MEMBER: len(spec.members)}
    for name in (*COUNTS, "kind", "actor", *({MEMBER} & {*columns})):
        column = columns[name]
        if column.dtype.kind not in "iu" or not 0 <= int(column.min()) <= int(column.max()) < limits.get(name, 1 << 31):
            raise ValueError(f"{name} holds {column.min()} to {column.max()}, expected integers from 0")
    is_step = columns["kind"] == STEP
    _require_actions(columns["action"][is_step], spec.head)
    if len({*np.unique(columns["slot"][is_step], return_counts=True)[1]}) != 1:
        raise ValueError("its slots have different numbers of steps")
    if condensed and len(np.unique(columns[HELDOUT][is_step])) < 2:
        raise ValueError("heldout is the same for all of its steps")
    next_rows(columns["kind"], columns["ended"])  # raises an error if there are too few or too many next observations


def require_counts(columns: Columns, rows: int, steps: int) -> None:
    """Raise ValueError if a block has other numbers of rows and steps."""
    found = len(columns["kind"]), int((columns["kind"] == STEP).sum())
    if found != (rows, steps):
        raise ValueError(f"it has {found[0]} rows and {found[1]} steps, expected {rows} and {steps}")


def _shapes(spec: PolicySpec, teacher_spec: PolicySpec | None) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("kind", "reward", "actor", *FLAGS, *COUNTS), ())
    shapes["action"] = spec.head.action_shape
    shapes |= dict.fromkeys(("teacher", "next_teacher"), (spec.head.num_params,))
    shapes["obs"] = spec.obs_shape[1:] if spec.frames else spec.obs_shape
    if spec.members:
        shapes[MEMBERS] = (sum(head.num_params for head in spec.member_heads),)
    return shapes if teacher_spec is None else shapes | {"teacher_obs": teacher_spec.obs_shape}


def _dtypes(spec: PolicySpec, teacher_spec: PolicySpec | None, columns: Columns) -> dict[str, str]:
    dtypes = {"obs": spec.obs_dtype, **dict.fromkeys(FLAGS, "bool")}
    if teacher_spec is not None:
        dtypes["teacher_obs"] = teacher_spec.obs_dtype
    dtypes |= {name: "bool" for name in (LABELED, HELDOUT) if name in columns}
    numbers = ("reward", "teacher", "next_teacher", "value", "next_value", "features", MEMBERS, RETURN_TO_GO)
    return dtypes | {name: "float32" for name in numbers if name in columns}


def _require_actions(actions: NDArray[Any], head: ActionHead) -> None:
    if actions.dtype.kind not in ("iu" if head.discrete else "f"):
        raise ValueError(f"action is of {actions.dtype}")
    choices = actions.reshape(len(actions), -1).T if head.discrete else ()
    for column, count in zip(choices, head.choices if head.discrete else (), strict=True):
        if not ((column >= 0) & (column < count)).all():
            raise ValueError(f"action holds other numbers than the integers from 0 to {count - 1}")
