"""What is written down while a block is played."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.data.blocks import Block
from rldistill.envs.two_views import Sight
from rldistill.rollouts import Memory, Transition
from rldistill.types import PolicyOutput


class BlockRecord:
    """What happens within one block, with the teacher's labels for every observation and every successor."""

    def __init__(
        self, teacher: Memory, sight: Sight, obs: NDArray[Any], features: bool = False, teacher_obs: bool = False
    ) -> None:
        self.actors: list[NDArray[np.int8]] = []
        self._teacher, self._sight, self._teacher_obs = teacher, sight, teacher_obs and sight.packed
        self._stacked = sight.student.frames is not None
        self._first_obs = sight.of("student", obs).copy()
        self._features = features
        self._labels: list[PolicyOutput] = []
        self._rows: list[dict[str, NDArray[Any]]] = []
        self._final: dict[int, tuple[NDArray[np.int64], PolicyOutput]] = {}

    def label(self, obs: NDArray[Any]) -> PolicyOutput:
        self._labels.append(self._teacher.look(obs))
        return self._labels[-1]

    def add(self, transition: Transition, age: NDArray[np.int64], episode: NDArray[np.int64]) -> None:
        step = transition.step
        if len(step.ended):
            # In a full batch, because the numbers of a forward pass depend on the size of its batch.
            successors = step.obs.copy()
            successors[step.ended] = step.last_obs
            self._final[len(self._rows)] = step.ended, self._teacher.peek(successors)
        obs = self._sight.of("student", transition.obs)
        seen_by_teacher = {"teacher_obs": self._sight.of("teacher", transition.obs)} if self._teacher_obs else {}
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
                "obs": obs[:, -1].copy() if self._stacked else obs.copy(),
                **seen_by_teacher,
            }
        )

    def block(self, obs: NDArray[Any], slots: int) -> Block:
        """The block, whose last step led to `obs`."""
        self._labels.append(self._teacher.peek(obs))
        columns = {name: np.stack([row[name] for row in self._rows], 1) for name in self._rows[0]}
        for name, label in self._label_columns().items():
            columns[name] = label
        columns["slot"] = np.repeat(np.arange(slots, dtype=np.int16)[:, None], len(self._rows), 1)
        columns["lead"] = np.zeros_like(columns["ended"])
        if self._stacked:
            lead = self._first_obs[:, :-1]
            columns = {
                name: np.concatenate([_lead_rows(name, column, lead), column], 1) for name, column in columns.items()
            }
        return Block({name: column.reshape(-1, *column.shape[2:]) for name, column in columns.items()}, obs_hash(obs))

    def _label_columns(self) -> dict[str, NDArray[Any]]:
        columns: dict[str, NDArray[Any]] = {}
        wanted = {"params": "teacher", "value": "value"} | ({"features": "features"} if self._features else {})
        for attribute, name in wanted.items():
            if getattr(self._labels[0], attribute) is None:
                continue
            labels = np.stack([getattr(label, attribute).numpy() for label in self._labels], 1)
            columns[name], successors = labels[:, :-1], labels[:, 1:].copy()
            if attribute == "features":
                continue
            for row, (ended, output) in self._final.items():
                successors[ended, row] = getattr(output, attribute).numpy()[ended]
            columns[f"next_{name}"] = successors
        return columns


def _lead_rows(name: str, column: NDArray[Any], frames: NDArray[np.uint8]) -> NDArray[Any]:
    if name == "obs":
        return frames
    rows = np.zeros((column.shape[0], frames.shape[1], *column.shape[2:]), column.dtype)
    if name == "slot":
        rows[:] = column[:, :1]
    elif name == "lead":
        rows[:] = True
    return rows


def obs_hash(obs: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(obs).tobytes()).hexdigest()
