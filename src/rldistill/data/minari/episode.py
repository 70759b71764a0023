"""Conversion of an episode of Minari to columns; invalid numbers are refused."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.entries import join_parts
from rldistill.core.errors import CorruptArtifactError
from rldistill.core.heads import ActionHead
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import FINAL, LABELS, STEP, TEACHER_OBS, Columns
from rldistill.data.manifest import Origin
from rldistill.data.minari import append_row

ADVICE = "Download or export it again."


def episode_columns(where: str, episode: Any, number: int, origin: Origin, exported: bool) -> Columns:
    """Return the rows of a block for an episode of Minari: its steps, and one row for its last observation.

    `where` is its name in errors. The infos are those of `export_minari` if `exported` is True, and ignored otherwise.

    Raises:
        CorruptArtifactError: An array does not fit the specs of `origin`.
    """
    steps, spec = len(episode), origin.spec
    if not steps:
        raise damaged(where, "found no steps, expected at least one")
    terminated = _numbers(f"{where}: terminations", episode.terminations, (steps,), np.bool_)
    truncated = _numbers(f"{where}: truncations", episode.truncations, (steps,), np.bool_)
    obs = _observations(where, episode.observations, steps + 1, spec)
    action = _actions(f"{where}: actions", episode.actions, steps, spec.head)
    columns: Columns = {
        "action": action,
        "reward": _numbers(f"{where}: rewards", episode.rewards, (steps,), np.float32),
        "terminated": terminated,
        "truncated": truncated & ~terminated,
        "ended": np.arange(steps) == steps - 1,
        "episode": np.full(steps, number, np.int32),
        "step": np.arange(steps, dtype=np.int32),
        "actor": np.zeros(steps, np.int8),
        "slot": np.zeros(steps, np.int16),
    }
    last_rows: Columns = {"obs": obs if spec.frames is None else obs[:, -1]}
    if exported:
        infos = _exported_infos(where, episode, origin)
        if TEACHER_OBS in infos:
            last_rows[TEACHER_OBS] = infos.pop(TEACHER_OBS)
        columns["truncated"] &= not infos.pop("cut", np.zeros(1))[0]
        columns |= {name: column[:steps] for name, column in infos.items()}
    else:
        taken = spec.head.certain(torch.tensor(action)).numpy()
        columns |= {"teacher": taken, "next_teacher": np.concatenate([taken[1:], taken[-1:]])}
    kind = np.append(np.full(steps, STEP, np.int8), np.int8(FINAL))
    return {"kind": kind, **last_rows, **{name: append_row(column) for name, column in columns.items()}}


def _exported_infos(where: str, episode: Any, origin: Origin) -> Columns:
    """Return the infos that `export_minari` wrote."""
    infos = episode.infos if isinstance(episode.infos, dict) else {}
    shapes: dict[str, tuple[tuple[int, ...], Any]] = dict.fromkeys(LABELS, ((), np.float32))
    shapes |= dict.fromkeys(("teacher", "next_teacher"), ((origin.spec.head.num_params,), np.float32))
    shapes |= {"features": (np.shape(infos.get("features", ()))[1:], np.float32)}
    shapes |= {"actor": ((), np.int8), "cut": ((), np.bool_)}
    required = {"teacher", "next_teacher"}
    if origin.teacher_spec is not None:
        shapes[TEACHER_OBS] = ((math.prod(origin.teacher_spec.obs_shape),), origin.teacher_spec.obs_dtype)
        required.add(TEACHER_OBS)
    arrays = {
        key: _numbers(f"{where}: infos: {key}", infos.get(key, ()), (len(episode) + 1, *shape), dtype)
        for key, (shape, dtype) in shapes.items()
        if key in infos or key in required
    }
    if origin.teacher_spec is not None:
        arrays[TEACHER_OBS] = arrays[TEACHER_OBS].reshape(-1, *origin.teacher_spec.obs_shape)
    return arrays


def conversion_notes(episode: Any, spec: PolicySpec) -> set[str]:
    """Return notes on numbers that were rounded, and on actions outside their space."""
    notes, recorded = set(), {"rewards": [episode.rewards], "actions": [episode.actions]}
    recorded["observations"] = [episode.observations[key] for key, _ in spec.parts]
    for name, arrays in recorded.items():
        for array in map(np.asarray, arrays):
            if array.dtype == np.float64 and not np.array_equal(array, array.astype(np.float32)):
                notes.add(f"{name} were rounded from float64 to float32")
    if not spec.head.discrete:
        actions = np.asarray(episode.actions, np.float32).reshape(len(episode), -1)
        if ((actions < np.array(spec.head.low, np.float32)) | (actions > np.array(spec.head.high, np.float32))).any():
            notes.add("some actions are outside the bounds of its action_space, which a student never leaves")
    return notes


def _observations(where: str, found: Any, rows: int, spec: PolicySpec) -> NDArray[Any]:
    """Return the observations of an episode; of a dict space, the entries one after the other."""
    if not spec.parts:
        return _numbers(f"{where}: observations", found, (rows, *spec.obs_shape), spec.obs_dtype, spec.nvec)
    entries = {
        key: _numbers(f"{where}: observations: {key}", found.get(key, ()), (rows, *part.shape), part.dtype, part.nvec)
        for key, part in spec.parts
    }
    return join_parts(entries, spec.parts, spec.obs_dtype)


def _actions(where: str, found: Any, steps: int, head: ActionHead) -> NDArray[Any]:
    """Return the actions of an episode, `[T]` for one integer, `[T, A]` otherwise."""
    array, dtype = np.asarray(found), np.int64 if head.discrete else np.float32
    if not head.single_choice:
        array = array.reshape(*array.shape[:1], math.prod(array.shape[1:]))
    return _numbers(where, array, (steps, *head.action_shape), dtype, head.choices)


def _numbers(where: str, found: Any, shape: tuple[int, ...], dtype: Any, sizes: tuple[int, ...] = ()) -> NDArray[Any]:
    """Return numbers as an array of this shape and dtype, of integers below `sizes` if there are any.

    Raises:
        CorruptArtifactError: The numbers are not of this kind.
    """
    array = np.asarray(found)
    if array.dtype.kind not in "biuf":
        raise damaged(where, f"found {array.dtype}, expected numbers")
    if array.shape != shape:
        raise damaged(where, f"found shape {array.shape}, expected {shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        held = array.astype(dtype, copy=False)
        finite = held.dtype.kind != "f" or np.isfinite(held.astype(np.float32, copy=False)).all()
    if not finite:
        raise damaged(where, "found NaN or infinite numbers, expected finite float32")
    if held.dtype.kind != "f" and not np.array_equal(held, array):
        raise damaged(where, f"found {array.dtype} numbers, expected those of {held.dtype}")
    if sizes:
        choices = held.reshape(len(held), -1)
        wrong = np.argwhere((choices < 0) | (choices >= np.array(sizes)))
        for row, column in wrong[:1]:
            raise damaged(where, f"found {choices[row, column]} at step {row}, expected 0 to {sizes[column] - 1}")
    return held


def damaged(where: str, problem: str) -> CorruptArtifactError:
    """Return the error for a damaged dataset."""
    return CorruptArtifactError(f"{where}: {problem}. {ADVICE}")
