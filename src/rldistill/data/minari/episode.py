"""Conversion of an episode of Minari to columns; invalid numbers are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.errors import CorruptArtifactError
from rldistill.core.heads import ActionHead
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import FINAL, LABELS, STEP, Columns
from rldistill.data.minari.common import TEACHER_OBS, append_row

ADVICE = "Download or export it again."


def episode_columns(where: str, episode: Any, number: int, spec: PolicySpec, infos: Columns) -> Columns:
    """Return the rows of a block for an episode of Minari: its steps, and one row for its last observation.

    `where` is its name in errors, and `infos` are empty for an episode that we did not export.

    Raises:
        CorruptArtifactError: An array does not fit the spec.
    """
    steps = len(episode)
    if not steps:
        raise CorruptArtifactError(f"{where}: found no steps, expected at least one. {ADVICE}")
    reward = _numbers(f"{where}: rewards", episode.rewards, (steps,), np.float32)
    terminated = _numbers(f"{where}: terminations", episode.terminations, (steps,), np.bool_)
    truncated = _numbers(f"{where}: truncations", episode.truncations, (steps,), np.bool_)
    obs = _observations(where, episode.observations, steps + 1, spec)
    action = _actions(f"{where}: actions", episode.actions, steps, spec.head)
    cut = "cut" in infos and infos["cut"][0]
    columns: Columns = {
        "obs": obs if spec.frames is None else obs[:, -1],
        "action": action,
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated & ~terminated & (not cut),
        "ended": np.arange(steps) == steps - 1,
        "episode": np.full(steps, number, np.int32),
        "step": np.arange(steps, dtype=np.int32),
        "actor": infos["actor"][:steps] if "actor" in infos else np.zeros(steps, np.int8),
        "slot": np.zeros(steps, np.int16),
        **_labels(infos, action, spec.head, steps),
    }
    if TEACHER_OBS in infos:
        columns[TEACHER_OBS] = infos[TEACHER_OBS]
    columns = {name: column if name in ("obs", TEACHER_OBS) else append_row(column) for name, column in columns.items()}
    columns["kind"] = np.append(np.full(steps, STEP, np.int8), np.int8(FINAL))
    return columns


def exported_infos(where: str, episode: Any, spec: PolicySpec, teacher_spec: PolicySpec | None) -> Columns:
    """Return the infos of an episode that we exported; raise CorruptArtifactError if they do not fit the specs."""
    infos = episode.infos if isinstance(episode.infos, dict) else {}
    rows, labels = len(episode) + 1, (spec.head.num_params,)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "teacher": (labels, np.float32),
        "next_teacher": (labels, np.float32),
        "value": ((), np.float32),
        "next_value": ((), np.float32),
        "features": (np.shape(infos.get("features", ()))[1:], np.float32),
        "actor": ((), np.int8),
        "cut": ((), np.bool_),
    }
    if teacher_spec is not None:
        shapes[TEACHER_OBS] = ((math.prod(teacher_spec.obs_shape),), teacher_spec.obs_dtype)
    required = {"teacher", "next_teacher", TEACHER_OBS}
    arrays = {
        key: _numbers(f"{where}: infos: {key}", infos.get(key, ()), (rows, *shape), dtype)
        for key, (shape, dtype) in shapes.items()
        if key in infos or key in required
    }
    if teacher_spec is not None:
        arrays[TEACHER_OBS] = arrays[TEACHER_OBS].reshape(-1, *teacher_spec.obs_shape)
    return arrays


def conversion_notes(episode: Any, spec: PolicySpec) -> set[str]:
    """Return notes on numbers that were rounded, and on actions outside their space."""
    recorded = {"rewards": [episode.rewards], "actions": [episode.actions]}
    recorded["observations"] = [episode.observations[key] for key, _ in spec.parts]
    notes = {
        f"{name} were rounded from float64 to float32"
        for name, arrays in recorded.items()
        if any(map(_is_rounded, arrays))
    }
    if not spec.head.discrete:
        actions = np.asarray(episode.actions, np.float32).reshape(len(episode), -1)
        if ((actions < np.array(spec.head.low, np.float32)) | (actions > np.array(spec.head.high, np.float32))).any():
            notes.add("some actions are outside the bounds of its action_space, which a student never leaves")
    return notes


def _is_rounded(numbers: Any) -> bool:
    array = np.asarray(numbers)
    return array.dtype == np.float64 and not np.array_equal(array, array.astype(np.float32))


def _observations(where: str, found: Any, rows: int, spec: PolicySpec) -> NDArray[Any]:
    """Return the observations of an episode; of a dict space, the entries one after the other."""
    entries = []
    for key, part in spec.entries.items():
        name = f"{where}: observations: {key}" if spec.parts else f"{where}: observations"
        entry = _numbers(name, found.get(key, ()) if spec.parts else found, (rows, *part.shape), part.dtype)
        if part.nvec:
            _require_choices(name, entry, part.nvec)
        entries.append(entry)
    if not spec.parts:
        return entries[0]
    return np.concatenate([entry.reshape(rows, -1).astype(np.float32) for entry in entries], 1)


def _actions(where: str, found: Any, steps: int, head: ActionHead) -> NDArray[Any]:
    """Return the actions of an episode, `[T]` for one integer, `[T, A]` otherwise."""
    array = np.asarray(found)
    if head.single_choice:
        array = _numbers(where, array, (steps,), np.int64)
    else:
        array = array.reshape(*array.shape[:1], math.prod(array.shape[1:]))
        width = len(head.choices or head.low)
        array = _numbers(where, array, (steps, width), np.int64 if head.discrete else np.float32)
    if head.discrete:
        _require_choices(where, array, head.choices)
    return array


def _labels(infos: Columns, action: NDArray[Any], head: ActionHead, steps: int) -> Columns:
    """Return the labels of the teacher if they were exported, and those of the actions otherwise."""
    if "teacher" in infos:
        return {name: infos[name][:steps] for name in LABELS if name in infos}
    taken = head.certain(torch.tensor(action)).numpy()
    return {"teacher": taken, "next_teacher": np.concatenate([taken[1:], taken[-1:]])}


def _numbers(where: str, found: Any, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return numbers as an array of this shape and dtype; raise CorruptArtifactError if they are not of this kind."""
    array = np.asarray(found)
    if array.dtype.kind not in "biuf":
        raise CorruptArtifactError(f"{where}: found {array.dtype}, expected numbers. {ADVICE}")
    if array.shape != shape:
        raise CorruptArtifactError(f"{where}: found shape {array.shape}, expected {shape}. {ADVICE}")
    with np.errstate(over="ignore", invalid="ignore"):
        held = array.astype(dtype, copy=False)
        finite = held.dtype.kind != "f" or np.isfinite(held.astype(np.float32, copy=False)).all()
    if not finite:
        raise CorruptArtifactError(f"{where}: found NaN or infinite numbers, expected finite float32. {ADVICE}")
    if held.dtype.kind != "f" and not np.array_equal(held, array):
        raise CorruptArtifactError(f"{where}: found {array.dtype} numbers, expected those of {held.dtype}. {ADVICE}")
    return held


def _require_choices(where: str, found: NDArray[Any], sizes: tuple[int, ...]) -> None:
    """Raise CorruptArtifactError unless each row has integers below these sizes."""
    choices = found.reshape(len(found), -1)
    wrong = (choices < 0) | (choices >= np.array(sizes))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise CorruptArtifactError(
            f"{where}: found {choices[row, column]} at step {row}, expected 0 to {sizes[column] - 1}. {ADVICE}"
        )
