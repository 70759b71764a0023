"""Moments of the largest disagreements between student and teacher, in a few groups of similar moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from rldistill.core.entries import flat_values, split_parts, value_names
from rldistill.core.heads import ActionHead, BernoulliHead
from rldistill.core.spec import PolicySpec
from rldistill.evaluation.episodes import ComparedStep
from rldistill.io.atomic import Document, discard_stage, write_atomic, write_json

MAX_MOMENTS, MAX_GROUPS = 12, 4
MOMENT_STEPS = 16
"""Number of steps of an episode that count as one moment: mistakes mostly last for several steps in a row."""

PICTURE_CELLS = 8
"""Rows and columns of cells that pictures are compared by."""

MOMENT_COLUMNS = ("episode", "step", "regret", "student_action", "teacher_action", "student", "teacher", "obs")

MAX_VALUES = 1_024
"""Largest number of values of an observation that are written."""


@dataclass(frozen=True)
class Moment:
    """State in which the student chose another action than the teacher.

    `regret` is the loss in the teacher's estimate; `student` and `teacher` are the parameters of both heads.
    """

    training_seed: int | None
    episode: int
    step: int
    regret: float
    head: ActionHead
    student_action: NDArray[Any]
    teacher_action: NDArray[Any]
    student: list[float]
    teacher: list[float]
    obs: NDArray[Any]

    def write(self, folder: Path, name: str) -> dict[str, Any]:
        """Return the content for JSON; write a picture as `<name>.png`."""
        picture = as_picture(self.obs)
        if picture is not None:
            import imageio.v2 as imageio

            write_atomic(folder / f"{name}.png", lambda temporary: imageio.imwrite(temporary, picture, format="PNG"))
        shown = picture is None and self.obs.size <= MAX_VALUES
        return {key: value for key, value in vars(self).items() if key != "head"} | {
            "student_action": self.student_action.tolist(),
            "teacher_action": self.teacher_action.tolist(),
            "frame": None if picture is None else f"{name}.png",
            "obs": self.obs.ravel().astype(float).tolist() if shown else None,
        }


class StoredMoment(Document):
    """Moment as it is written; `frame` names its picture."""

    training_seed: int | None
    episode: int
    step: int
    regret: float
    student_action: float | list[float]
    teacher_action: float | list[float]
    student: list[float]
    teacher: list[float]
    frame: Annotated[str, Field(pattern=r"^\d+-\d+\.png$")] | None
    obs: list[float] | None


class Gallery(Document):
    """Content of `disagreements.json`: groups of similar moments."""

    advice: ClassVar[str] = "Run `rldistill evaluate` again."
    unit: str | None
    names: list[str]
    groups: list[list[StoredMoment]]


class Moments:
    """The MAX_MOMENTS moments of largest regret, at most one in each MOMENT_STEPS steps of an episode."""

    def __init__(self, training_seed: int | None) -> None:
        self._training_seed = training_seed
        self._kept: dict[tuple[int, int], Moment] = {}

    def offer(self, regret: NDArray[np.floating[Any]], states: ComparedStep) -> None:
        """Keep the states, `[N]`, that are among the largest so far."""
        student, teacher, kept = states.student.mode().numpy(), states.teacher.mode().numpy(), self._kept
        smallest = min(moment.regret for moment in kept.values()) if len(kept) == MAX_MOMENTS else 0.0
        for row in np.argsort(-regret, kind="stable")[: MAX_MOMENTS * MOMENT_STEPS]:
            key = int(states.episode[row]), int(states.step[row]) // MOMENT_STEPS
            if regret[row] > smallest and (key not in kept or regret[row] > kept[key].regret):
                kept[key] = Moment(
                    self._training_seed,
                    int(states.episode[row]),
                    int(states.step[row]),
                    float(regret[row]),
                    states.teacher.head,
                    student[row].copy(),
                    teacher[row].copy(),
                    states.student.params[row].tolist(),
                    states.teacher.params[row].tolist(),
                    states.obs[row].copy(),
                )
        largest = sorted(kept, key=lambda key: -kept[key].regret)[:MAX_MOMENTS]
        self._kept = {key: kept[key] for key in largest}

    def followed_by(self, more: Moments) -> Moments:
        """Return the largest moments of two ranges of episodes."""
        both = Moments(self._training_seed)
        kept = {**self._kept, **more._kept}
        both._kept = {key: kept[key] for key in sorted(kept, key=lambda key: -kept[key].regret)[:MAX_MOMENTS]}
        return both

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments as tensors, the largest first."""
        columns = {name: [getattr(moment, name) for moment in self._kept.values()] for name in MOMENT_COLUMNS}
        return {name: torch.from_numpy(np.stack(values)) for name, values in columns.items() if values}

    @classmethod
    def from_tensors(cls, training_seed: int | None, head: ActionHead, tensors: Mapping[str, Tensor]) -> Moments:
        """Return the moments of `tensors`; raise KeyError if one of them is missing."""
        found = cls(training_seed)
        for row in range(len(tensors["regret"]) if tensors else 0):
            values: dict[str, Any] = {name: tensors[name][row].numpy() for name in MOMENT_COLUMNS}
            values |= {name: values[name].tolist() for name in ("episode", "step", "regret", "student", "teacher")}
            moment = Moment(training_seed, head=head, **values)
            found._kept[moment.episode, moment.step // MOMENT_STEPS] = moment
        return found

    @staticmethod
    def largest(runs: Sequence[Moments]) -> list[Moment]:
        """Return the largest moments of all training seeds, in descending order."""
        moments = [moment for run in runs for moment in run._kept.values()]
        return sorted(moments, key=lambda moment: -moment.regret)[:MAX_MOMENTS]


def group(moments: Sequence[Moment], max_groups: int = MAX_GROUPS) -> list[list[Moment]]:
    """Group similar moments by k-means over observations and actions, in descending order of regret.

    Observations are standardized over the moments (pictures: the means of 8 by 8 cells) and weigh as much as both
    actions together. The groups are deterministic.
    """
    if not moments:
        return []
    from sklearn.cluster import KMeans

    seen = np.stack([_observation_vector(moment.obs) for moment in moments])
    actions = np.stack([_action_vector(moment) for moment in moments])
    seen = (seen - seen.mean(0)) / np.where(seen.std(0) < 1e-6, 1.0, seen.std(0)) / math.sqrt(seen.shape[1])
    features = np.hstack([seen, actions]).round(9)
    count = min(max_groups, len(np.unique(features, axis=0)))
    labels = KMeans(count, n_init=10, random_state=0).fit_predict(features)
    groups = [[moment for moment, own in zip(moments, labels, strict=True) if own == label] for label in range(count)]
    return sorted((sorted(some, key=lambda m: -m.regret) for some in groups if some), key=lambda some: -some[0].regret)


def write_gallery(moments: Sequence[Moment], unit: str, spec: PolicySpec, folder: Path) -> None:
    """Write `disagreements.json`, and a PNG for each picture, in place of the folder's content."""
    discard_stage(folder)
    moments = [replace(moment, obs=shown_obs(moment.obs, spec)) for moment in moments]
    groups = [
        [moment.write(folder, f"{number}-{rank}") for rank, moment in enumerate(some, 1)]
        for number, some in enumerate(group(moments), 1)
    ]
    values = any(moment["obs"] is not None for some in groups for moment in some)
    names = value_names(spec)[:MAX_VALUES] if values else []
    write_json(folder / "disagreements.json", {"unit": unit, "names": names, "groups": groups})


def shown_obs(obs: NDArray[Any], spec: PolicySpec) -> NDArray[Any]:
    """Return the first picture of a dict, or else all its values; other observations as they are."""
    if not spec.parts:
        return obs
    batch = torch.from_numpy(obs)[None]
    pictures = (entry for entry in split_parts(batch, spec).values() if entry.dtype == torch.uint8 and entry.ndim == 4)
    picture = next(pictures, None) if obs.dtype == np.uint8 else None
    shown: NDArray[Any] = (flat_values(batch, spec) if picture is None else picture)[0].numpy()
    return shown


def as_picture(obs: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return a gray or color picture, with the frames of a stack side by side; None for other observations.

    Pictures are uint8 arrays of three dimensions, with channels first or last.
    """
    if obs.dtype != np.uint8 or obs.ndim != 3:
        return None
    if obs.shape[-1] in (1, 3):
        return obs.squeeze(-1) if obs.shape[-1] == 1 else obs
    if obs.shape[0] == 3:
        return np.ascontiguousarray(np.moveaxis(obs, 0, -1))
    return np.hstack(list(obs))


def _observation_vector(obs: NDArray[Any]) -> NDArray[np.float64]:
    picture = as_picture(obs)
    if picture is None:
        return obs.ravel().astype(np.float64)
    newest = (obs[-1] if obs.shape[-1] not in (1, 3) and obs.shape[0] != 3 else picture).astype(np.float64)
    gray = newest.reshape(*newest.shape[:2], -1).mean(-1)
    rows = np.array_split(gray, min(PICTURE_CELLS, gray.shape[0]), axis=0)
    return np.array([cell.mean() for row in rows for cell in np.array_split(row, min(PICTURE_CELLS, row.shape[1]), 1)])


def _action_vector(moment: Moment) -> NDArray[np.float64]:
    """Return both actions, with each discrete part as a one-hot vector, but bits as they are."""
    actions = np.stack([np.ravel(moment.teacher_action), np.ravel(moment.student_action)]).astype(np.float64)
    if isinstance(moment.head, BernoulliHead) or not moment.head.discrete:
        return actions.ravel()
    parts = zip(actions.T.astype(int), moment.head.nvec, strict=True)
    return np.concatenate([np.eye(n)[part].ravel() for part, n in parts])
