"""Checks of the content of a block against the manifest, which a hash cannot replace: it is that of any writer."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.entries import is_finite
from rldistill.core.heads import ActionHead
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import (
    ACTORS,
    FINAL,
    HELDOUT,
    LABELED,
    LEAD,
    MEMBER,
    MEMBERS,
    RETURN_TO_GO,
    STEP,
    Columns,
    next_rows,
)

FLAGS = ("terminated", "truncated", "ended")
COUNTS = ("slot", "episode", "step")


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
