"""Recorder of the steps and labels of one block."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.entries import is_finite
from rldistill.core.errors import SpecMismatchError
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Side
from rldistill.data.blocks import FINAL, LABELED, LEAD, MEMBER, MEMBERS, STEP, Block, Columns
from rldistill.envs.vector import Step, obs_hash
from rldistill.envs.views import ObservationViews
from rldistill.policies.agent import StatefulPolicy


class TeacherLabeler:
    """Labels of the teacher for every observation of a block and for every next observation.

    No state has two labels: that after a block is `following`, which is `first` in the next block.

    Args:
        teacher: The teacher.
        features: True to keep its last hidden layer.
        sparse: True to label some observations only, and no next observations.
        first: Label of the first observations, if there is one.
    """

    def __init__(
        self,
        teacher: StatefulPolicy,
        features: bool = False,
        sparse: bool = False,
        first: PolicyOutput | None = None,
    ) -> None:
        self.teacher, self.features, self.sparse, self.num_labels = teacher, features, sparse, 0
        self.following: PolicyOutput | None = None
        self._first = first
        self._labels: list[PolicyOutput] = []
        self._labeled: list[NDArray[np.bool_]] = []
        self._last_labels: dict[int, tuple[NDArray[np.int64], PolicyOutput]] = {}

    def label(self, obs: NDArray[Any], rows: NDArray[np.int64] | None = None) -> PolicyOutput:
        """Label the observations of the slots, or of some `rows` alone, and keep the recurrent state."""
        output, self._first = self._first, None
        if output is None:
            output = self.teacher.step(obs, rows)
            self.num_labels += len(obs if rows is None else rows)
        self._labels.append(output)
        labeled = np.ones(len(obs), bool) if rows is None else np.isin(np.arange(len(obs)), rows)
        self._labeled.append(labeled)
        return output

    def end(self, step: Step) -> None:
        """Label the last observations of the episodes that ended with a step, and reset the state of their slots."""
        if len(step.ended) and self.sparse:
            self.teacher.reset(step.ended)
        elif len(step.ended):
            # In a full batch, because the results of a forward pass depend on the size of its batch.
            obs = step.obs.copy()
            obs[step.ended] = step.last_obs
            self._last_labels[len(self._labels) - 1] = step.ended, self.teacher.evaluate(obs, step.ended)
            self.num_labels += len(step.ended)
            self.teacher.reset(step.ended)

    def columns(self, obs: NDArray[Any]) -> Columns:
        """Return the columns of labels, `[slots, T, ...]`; `obs` are the observations after the last step."""
        if self.sparse:
            return self._sparse_columns()
        after = self.teacher.evaluate(obs)
        self.num_labels += len(obs)
        self.following = after if self.teacher.state is None else None  # whose state would have to advance
        outputs = [*self._labels, after]
        columns: Columns = {} if after.members is None else {MEMBERS: _stack(self._labels, MEMBERS)}
        for attribute, name in (("params", "teacher"), ("value", "value")):
            if getattr(outputs[0], attribute) is None:
                continue
            labels = _stack(outputs, attribute)
            next_labels = labels[:, 1:].copy()
            for row, (ended, output) in self._last_labels.items():
                next_labels[ended, row] = getattr(output, attribute).numpy()[ended]
            columns |= {name: labels[:, :-1], f"next_{name}": next_labels}
        if self.features:
            columns["features"] = _features(outputs)[:, :-1]
        return columns

    def _sparse_columns(self) -> Columns:
        """Return the labels, with zeros where there is none, and the column that distinguishes them."""
        labeled = np.stack(self._labeled, 1)
        columns = {"teacher": _stack(self._labels, "params")}
        if self._labels[0].members is not None:
            columns[MEMBERS] = _stack(self._labels, MEMBERS)
        if self.features:
            columns["features"] = _features(self._labels)
        for column in columns.values():
            column[~labeled] = 0
        return columns | {"next_teacher": np.zeros_like(columns["teacher"]), LABELED: labeled}


def _features(outputs: list[PolicyOutput]) -> NDArray[Any]:
    if outputs[0].features is None:
        raise SpecMismatchError("collect.features: the teacher has no features. Set features: false.")
    return _stack(outputs, "features")


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
        self.labeler = labeler
        self.actors: list[NDArray[np.int8]] = []
        self.members: list[NDArray[np.int8]] = []
        self._views, self._stacked = views, views.student.frames is not None
        self._sides: dict[str, Side] = {"obs": "student"}
        if teacher_obs and views.packed:
            self._sides["teacher_obs"] = "teacher"
        self._rows: list[Columns] = []
        # Rows with nothing but observations, by slot: the older frames of the first stacks, and last observations.
        lead = views.select("student", obs)[:, :-1].copy() if self._stacked else [()] * len(obs)
        self._lead = [[{"obs": frame} for frame in frames] for frames in lead]
        self._final: list[list[Columns]] = [[] for _ in obs]

    def add(
        self,
        obs: NDArray[Any],
        action: NDArray[Any],
        step: Step,
        age: NDArray[np.int64],
        episode: NDArray[np.int64],
    ) -> None:
        """Record a step of all slots from the observations `obs`; `age` counts the earlier steps of their episodes."""
        self.labeler.end(step)
        last_obs = self._stored(step.last_obs)
        for index, slot in enumerate(step.ended):
            self._final[slot].append({name: part[index] for name, part in last_obs.items()})
        self._rows.append(
            {
                "episode": episode.astype(np.int32),
                "step": age.astype(np.int32),
                "action": action,
                "reward": step.own_reward.astype(np.float32),
                "terminated": step.terminated.copy(),
                "truncated": step.truncated & ~step.terminated,
                "ended": step.terminated | step.truncated,
                "actor": self.actors[-1],
                **({MEMBER: self.members[-1]} if self.members else {}),
                **self._stored(obs),
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
        steps = {name: np.stack([row[name] for row in self._rows], 1) for name in self._rows[0]}
        steps |= self.labeler.columns(obs)
        next_obs = self._stored(obs)
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in [*steps, "kind", "slot"]}
        for slot, (lead, final) in enumerate(zip(self._lead, self._final, strict=True)):
            if not self._rows[-1]["ended"][slot]:
                final.append({name: part[slot] for name, part in next_obs.items()})
            for name, column in steps.items():
                zeros = np.zeros_like(column[slot, 0])
                before, after = ([row.get(name, zeros)[None] for row in rows] for rows in (lead, final))
                parts[name] += [*before, column[slot], *after]
            counts = [len(lead), len(self._rows), len(final)]
            parts["kind"].append(np.repeat(np.array([LEAD, STEP, FINAL], np.int8), counts))
            parts["slot"].append(np.full(sum(counts), slot, np.int16))
        columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        finite = {name: is_finite(columns[name], getattr(self._views, side)) for name, side in self._sides.items()}
        for name, is_valid in (finite | {"reward": bool(np.isfinite(columns["reward"]).all())}).items():
            if not is_valid:
                raise SpecMismatchError(f"env: its {name} is NaN or infinite in some steps. Clip it with a wrapper.")
        return Block(columns, obs_hash(obs))
