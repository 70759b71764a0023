"""What is written down while a block is played."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import PolicyOutput
from rldistill.data.blocks import FINAL, LEAD, STEP, Block
from rldistill.envs.config import Side
from rldistill.envs.rollout import StatefulPolicy, Transition
from rldistill.envs.vector import Step
from rldistill.envs.views import ObservationViews


class TeacherLabeler:
    """What the teacher says of every observation of a block, and of what every step led to."""

    def __init__(self, teacher: StatefulPolicy, features: bool = False) -> None:
        self.teacher = teacher
        self._features = features
        self._said: list[PolicyOutput] = []
        self._final: dict[int, tuple[NDArray[np.int64], PolicyOutput]] = {}

    def label(self, obs: NDArray[Any]) -> PolicyOutput:
        """Of the observations that the slots show; the teacher remembers them from here on."""
        self._said.append(self.teacher.step(obs))
        return self._said[-1]

    def end(self, step: Step) -> None:
        """Of the last observations of the episodes that end with a step, whose slots then begin anew."""
        if len(step.ended):
            # In a full batch, because the numbers of a forward pass depend on the size of its batch.
            shown = step.obs.copy()
            shown[step.ended] = step.last_obs
            self._final[len(self._said) - 1] = step.ended, self.teacher.evaluate(shown)
            self.teacher.reset(step.ended)

    def columns(self, obs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Labels `[slots, T, ...]` by the names of their columns; the block's last step led to `obs`."""
        said = [*self._said, self.teacher.evaluate(obs)]
        columns: dict[str, NDArray[Any]] = {}
        wanted = {"params": "teacher", "value": "value"} | ({"features": "features"} if self._features else {})
        for attribute, name in wanted.items():
            if getattr(said[0], attribute) is None:
                if attribute == "features":
                    raise SpecMismatchError("collect.features: this teacher tells no features; leave it out")
                continue
            labels = np.stack([getattr(label, attribute).numpy() for label in said], 1)
            if not np.isfinite(labels).all():
                raise SpecMismatchError(
                    f"the teacher's {attribute} of some observations are NaN or infinite; `rldistill teachers verify` "
                    "looks for weights or a scale of observations that are wrong"
                )
            columns[name], following = labels[:, :-1], labels[:, 1:].copy()
            if attribute == "features":
                continue
            for row, (ended, output) in self._final.items():
                following[ended, row] = getattr(output, attribute).numpy()[ended]
            columns[f"next_{name}"] = following
        return columns


class BlockRecorder:
    """What happens within one block, with the teacher's labels for every observation and every successor."""

    def __init__(
        self,
        teacher: StatefulPolicy,
        sight: ObservationViews,
        obs: NDArray[Any],
        features: bool = False,
        teacher_obs: bool = False,
    ) -> None:
        self.actors: list[NDArray[np.int8]] = []
        self.labels = TeacherLabeler(teacher, features)
        self._sight = sight
        self._stacked = sight.student.frames is not None
        self._sides: dict[str, Side] = {"obs": "student"}
        if teacher_obs and sight.packed:
            self._sides["teacher_obs"] = "teacher"
        self._lead = sight.select("student", obs)[:, :-1].copy() if self._stacked else None
        self._rows: list[dict[str, NDArray[Any]]] = []
        self._final: list[list[dict[str, NDArray[Any]]]] = [[] for _ in obs]

    def add(self, transition: Transition, age: NDArray[np.int64], episode: NDArray[np.int64]) -> None:
        step = transition.step
        self.labels.end(step)
        last = self._seen(step.last_obs)
        for number, slot in enumerate(step.ended):
            self._final[slot].append({name: seen[number] for name, seen in last.items()})
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
                **self._seen(transition.obs),
            }
        )

    def _seen(self, obs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What is stored of observations, by column: of a stack the newest frame."""
        seen = {name: self._sight.select(side, obs) for name, side in self._sides.items()}
        if self._stacked:
            seen["obs"] = seen["obs"][:, -1]
        return {name: part.copy() for name, part in seen.items()}

    def block(self, obs: NDArray[Any]) -> Block:
        """The block, whose last step led to `obs`."""
        columns = {name: np.stack([row[name] for row in self._rows], 1) for name in self._rows[0]}
        columns |= self.labels.columns(obs)
        open_end = ~self._rows[-1]["ended"]
        shown = self._seen(obs)
        slots = []
        for slot, final in enumerate(self._final):
            if open_end[slot]:
                final.append({name: seen[slot] for name, seen in shown.items()})
            lead = [] if self._lead is None else [{"obs": frame} for frame in self._lead[slot]]
            slots.append(_slot_rows({name: column[slot] for name, column in columns.items()}, slot, lead, final))
        return Block({name: np.concatenate([rows[name] for rows in slots]) for name in slots[0]}, obs_hash(obs))


def _slot_rows(
    columns: dict[str, NDArray[Any]],
    slot: int,
    lead: list[dict[str, NDArray[Any]]],
    final: list[dict[str, NDArray[Any]]],
) -> dict[str, NDArray[Any]]:
    """A slot's steps between the rows that show observations alone."""
    out = {}
    for name, column in columns.items():
        before, after = (
            np.stack([np.asarray(row[name]) if name in row else np.zeros_like(column[0]) for row in rows])
            if rows
            else column[:0]
            for rows in (lead, final)
        )
        out[name] = np.concatenate([before, column, after])
    steps = len(next(iter(columns.values())))
    out["kind"] = np.repeat(np.array([LEAD, STEP, FINAL], np.int8), [len(lead), steps, len(final)])
    out["slot"] = np.full(len(out["kind"]), slot, np.int16)
    return out


def obs_hash(obs: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(obs).tobytes()).hexdigest()
