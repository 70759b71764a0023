"""Where student and teacher part: the moments of largest regret, in a few groups of a kind, for a person to look at."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.heads import ActionHead, BernoulliHead
from rldistill.core.policy import PolicyOutput
from rldistill.io.atomic import write_atomic, write_json

MOST, GROUPS = 12, 4
SPAN = 16
"""Steps of an episode that are one moment: what goes wrong mostly does so for several steps in a row."""
PLACES = 8
"""Rows and columns that a picture is cut into when pictures are compared."""
MOST_VALUES = 1_024
"""Numbers of an observation that are written out."""


@dataclass(frozen=True)
class Moment:
    """One state in which the student decided otherwise than its teacher would have.

    Attributes:
        training_seed: of the student.
        episode, step: of the evaluation.
        regret: what the teacher thinks was lost.
        head: what the numbers of the teacher mean.
        student_action, teacher_action: what each would do.
        student, teacher: the numbers of their heads.
        obs: what the student saw.
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


class Moments:
    """The moments of largest regret so far, at most one in each SPAN steps of an episode and MOST in all."""

    def __init__(self, training_seed: int | None) -> None:
        self._training_seed = training_seed
        self._kept: dict[tuple[int, int], Moment] = {}

    def offer(
        self,
        regret: NDArray[np.floating[Any]],
        obs: NDArray[Any],
        episode: NDArray[np.int64],
        step: NDArray[np.int64],
        student: PolicyOutput,
        teacher: PolicyOutput,
    ) -> None:
        """Take up what is among the largest of some states, `[N]` each."""
        actions = student.mode().numpy(), teacher.mode().numpy()
        for row in np.argsort(-regret, kind="stable"):
            if not regret[row] > self._least():
                break
            place = int(episode[row]), int(step[row]) // SPAN
            if place in self._kept and self._kept[place].regret >= regret[row]:
                continue
            self._kept[place] = Moment(
                self._training_seed,
                int(episode[row]),
                int(step[row]),
                float(regret[row]),
                teacher.head,
                actions[0][row].copy(),
                actions[1][row].copy(),
                student.params[row].tolist(),
                teacher.params[row].tolist(),
                obs[row].copy(),
            )
            if len(self._kept) > MOST:
                del self._kept[min(self._kept, key=lambda key: self._kept[key].regret)]

    def _least(self) -> float:
        return min(moment.regret for moment in self._kept.values()) if len(self._kept) == MOST else 0.0

    @staticmethod
    def largest(everyone: Sequence[Moments]) -> list[Moment]:
        """Of the same student with several training seeds, the largest first."""
        moments = [moment for moments in everyone for moment in moments._kept.values()]
        return sorted(moments, key=lambda moment: -moment.regret)[:MOST]


def group(moments: Sequence[Moment], most: int = GROUPS) -> list[list[Moment]]:
    """Moments of a kind together, the largest regret first, by k-means over what was seen and what was done.

    What was seen is standardised over the moments, and a picture cut into 8 by 8 places, of which the mean counts; it
    weighs as much as both actions do. The same moments fall into the same groups every time.
    """
    if not moments:
        return []
    from sklearn.cluster import KMeans

    seen = np.stack([_looks(moment.obs) for moment in moments])
    seen = (seen - seen.mean(0)) / np.where(seen.std(0) < 1e-6, 1.0, seen.std(0)) / math.sqrt(seen.shape[1])
    done = np.stack(
        [np.concatenate([_as_vector(m.teacher_action, m), _as_vector(m.student_action, m)]) for m in moments]
    )
    features = np.hstack([seen, done]).round(9)
    number = min(most, len(np.unique(features, axis=0)))
    labels = KMeans(number, n_init=10, random_state=0).fit_predict(features)
    groups = [[moment for moment, own in zip(moments, labels, strict=True) if own == label] for label in range(number)]
    return sorted((sorted(some, key=lambda m: -m.regret) for some in groups if some), key=lambda some: -some[0].regret)


def write_gallery(moments: Sequence[Moment], unit: str, folder: Path) -> None:
    """Write `disagreements.json` and, where pictures were seen, a PNG for each moment, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    entries = []
    for number, some in enumerate(group(moments), 1):
        entries.append([_entry(moment, f"{number}-{rank}.png", folder) for rank, moment in enumerate(some, 1)])
    write_json(folder / "disagreements.json", {"unit": unit, "groups": entries})


def _entry(moment: Moment, name: str, folder: Path) -> dict[str, Any]:
    entry = {field.name: getattr(moment, field.name) for field in dataclasses.fields(moment)}
    for key in ("student_action", "teacher_action"):
        entry[key] = entry[key].tolist()
    del entry["head"], entry["obs"]
    picture = as_picture(moment.obs)
    if picture is not None:
        _write_png(folder / name, picture)
    values = moment.obs.ravel().tolist() if picture is None and moment.obs.size <= MOST_VALUES else None
    return {**entry, "frame": None if picture is None else name, "obs": values}


def _write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    import imageio.v2 as imageio

    write_atomic(path, lambda temporary: imageio.imwrite(temporary, picture, format="PNG"))


def as_picture(obs: NDArray[Any]) -> NDArray[np.uint8] | None:
    """An observation as a grey or coloured picture, a stack's frames side by side, the newest last; None if it is none.

    Pictures are uint8 of three dimensions, channels first or last.
    """
    if obs.dtype != np.uint8 or obs.ndim != 3:
        return None
    if obs.shape[-1] in (1, 3):
        return obs.squeeze(-1) if obs.shape[-1] == 1 else obs
    if obs.shape[0] == 3:
        return np.ascontiguousarray(np.moveaxis(obs, 0, -1))
    return np.hstack(list(obs))


def _looks(obs: NDArray[Any]) -> NDArray[np.float64]:
    """An observation as a small vector."""
    picture = as_picture(obs)
    if picture is None:
        return obs.ravel().astype(np.float64)
    newest = (obs[-1] if obs.shape[-1] not in (1, 3) and obs.shape[0] != 3 else picture).astype(np.float64)
    rows = np.array_split(newest.reshape(*newest.shape[:2], -1).mean(-1), min(PLACES, newest.shape[0]), axis=0)
    return np.array([part.mean() for row in rows for part in np.array_split(row, min(PLACES, row.shape[1]), axis=1)])


def _as_vector(action: NDArray[Any], moment: Moment) -> NDArray[np.float64]:
    """An action as a small vector: of what was chosen 1, of each part; a continuous one as it is."""
    head = moment.head
    if isinstance(head, BernoulliHead) or not head.discrete:
        return np.asarray(action, np.float64).ravel()
    return np.concatenate([np.eye(n)[int(a)] for a, n in zip(np.atleast_1d(action), head.nvec, strict=True)])
