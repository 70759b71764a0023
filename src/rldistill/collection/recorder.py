"""Recorder of the steps and labels of one block."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Side
from rldistill.data.blocks import FINAL, LEAD, STEP, Block, Columns
from rldistill.envs.rollout import StatefulPolicy, Transition
from rldistill.envs.vector import Step
from rldistill.envs.views import ObservationViews


class TeacherLabeler:
    """Labels of the teacher for every observation of a block and for every next observation."""

    def __init__(self, teacher: StatefulPolicy, features: bool = False) -> None:
        self.teacher, self.features = teacher, features
        self._labels: list[PolicyOutput] = []
        self._last_labels: dict[int, tuple[NDArray[np.int64], PolicyOutput]] = {}

    def label(self, obs: NDArray[Any]) -> PolicyOutput:
        """Label the observations of the slots and keep the recurrent state."""
        self._labels.append(self.teacher.step(obs))
        return self._labels[-1]

    def end(self, step: Step) -> None:
        """Label the last observations of the episodes that ended with a step, and reset the state of their slots."""
        if len(step.ended):
            # In a full batch, because the results of a forward pass depend on the size of its batch.
            obs = step.obs.copy()
            obs[step.ended] = step.last_obs
            self._last_labels[len(self._labels) - 1] = step.ended, self.teacher.evaluate(obs)
            self.teacher.reset(step.ended)

    def columns(self, obs: NDArray[Any]) -> Columns:
        """Return the columns of labels, `[slots, T, ...]`; `obs` are the observations after the last step."""
        outputs = [*self._labels, self.teacher.evaluate(obs)]
        columns: Columns = {}
        for attribute, name in (("params", "teacher"), ("value", "value")):
            if getattr(outputs[0], attribute) is None:
                continue
            labels = _stack(outputs, attribute)
            next_labels = labels[:, 1:].copy()
            for row, (ended, output) in self._last_labels.items():
                next_labels[ended, row] = getattr(output, attribute).numpy()[ended]
            columns |= {name: labels[:, :-1], f"next_{name}": next_labels}
        if self.features:
            if outputs[0].features is None:
                raise SpecMismatchError("collect.features: the teacher has no features. Set features: false.")
            columns["features"] = _stack(outputs, "features")[:, :-1]
        return columns


def _stack(outputs: list[PolicyOutput], attribute: str) -> NDArray[Any]:
    labels = np.stack([getattr(output, attribute).numpy() for output in outputs], 1)
    if not np.isfinite(labels).all():
        raise SpecMismatchError(
            f"teacher: its {attribute} for some observations are NaN or infinite. `rldistill teachers verify` checks "
            "its weights and the scale of its observations."
        )
    return labels


class BlockRecorder:
    """Columns of one block while it is played."""

    def __init__(
        self, labeler: TeacherLabeler, views: ObservationViews, obs: NDArray[Any], teacher_obs: bool = False
    ) -> None:
        self.actors: list[NDArray[np.int8]] = []
        self.labeler = labeler
        self._views = views
        self._stacked = views.student.frames is not None
        self._sides: dict[str, Side] = {"obs": "student"}
        if teacher_obs and views.packed:
            self._sides["teacher_obs"] = "teacher"
        self._lead = views.select("student", obs)[:, :-1].copy() if self._stacked else None
        self._rows: list[Columns] = []
        self._final: list[list[Columns]] = [[] for _ in obs]

    def add(self, transition: Transition, age: NDArray[np.int64], episode: NDArray[np.int64]) -> None:
        """Record a step of all slots; `age` counts the earlier steps of their episodes."""
        step = transition.step
        self.labeler.end(step)
        last_obs = self._stored(step.last_obs)
        for index, slot in enumerate(step.ended):
            self._final[slot].append({name: obs[index] for name, obs in last_obs.items()})
        self._rows.append(
            {
                "episode": episode.astype(np.int32),
                "step": age.astype(np.int32),
                "action": transition.action,
                "reward": step.reward.astype(np.float32),
                "terminated": step.terminated.copy(),
                "truncated": step.truncated & ~step.terminated,
                "ended": step.terminated | step.truncated,
                "actor": self.actors[-1],
                **self._stored(transition.obs),
            }
        )

    def _stored(self, obs: NDArray[Any]) -> Columns:
        """Return the columns of observations; of a stack, the newest frame."""
        stored = {name: self._views.select(side, obs) for name, side in self._sides.items()}
        if self._stacked:
            stored["obs"] = stored["obs"][:, -1]
        return {name: part.copy() for name, part in stored.items()}

    def block(self, obs: NDArray[Any]) -> Block:
        """Return the block; `obs` are the observations after its last step."""
        columns = {name: np.stack([row[name] for row in self._rows], 1) for name in self._rows[0]}
        columns |= self.labeler.columns(obs)
        next_obs = self._stored(obs)
        slots = []
        for slot, final in enumerate(self._final):
            if not self._rows[-1]["ended"][slot]:
                final.append({name: part[slot] for name, part in next_obs.items()})
            lead = [] if self._lead is None else [{"obs": frame} for frame in self._lead[slot]]
            slots.append(_slot_columns({name: column[slot] for name, column in columns.items()}, slot, lead, final))
        return Block({name: np.concatenate([part[name] for part in slots]) for name in slots[0]}, obs_hash(obs))


def _slot_columns(steps: Columns, slot: int, lead: list[Columns], final: list[Columns]) -> Columns:
    """Return the columns of a slot: its steps, between rows that hold nothing but observations."""
    columns = {}
    for name, column in steps.items():
        before, after = (
            np.stack([np.asarray(row.get(name, np.zeros_like(column[0]))) for row in rows]) if rows else column[:0]
            for rows in (lead, final)
        )
        columns[name] = np.concatenate([before, column, after])
    counts = [len(lead), len(steps["action"]), len(final)]
    columns["kind"] = np.repeat(np.array([LEAD, STEP, FINAL], np.int8), counts)
    columns["slot"] = np.full(sum(counts), slot, np.int16)
    return columns


def obs_hash(obs: NDArray[Any]) -> str:
    """Return the SHA-256 of observations."""
    return hashlib.sha256(np.ascontiguousarray(obs).tobytes()).hexdigest()
