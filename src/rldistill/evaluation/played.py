"""Episodes of an evaluation that is not finished, so that it goes on after a stop, and shards can divide it.

Each file holds the episodes of one policy that one job played. Its name is the hash of everything that they depend on,
so that an evaluation with other inputs plays anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import PositiveInt

from rldistill.core.errors import CorruptArtifactError
from rldistill.core.spec import EnvConfig, Head
from rldistill.evaluation.episodes import Episodes, PlayConfig, PolicyRuns, TeacherQuery, play
from rldistill.evaluation.fidelity import OwnStates
from rldistill.io.atomic import START_AGAIN, Document
from rldistill.io.execution import Increments
from rldistill.io.processes import Report
from rldistill.io.stage_inputs import StageInputs
from rldistill.io.storage import fetch
from rldistill.io.tensors import read_tensors, write_tensors
from rldistill.teachers.fingerprint import fingerprint

FOLDER = "unfinished-evaluation"
ARRAYS = ("returns", "discounted", "lengths")

Part = tuple[str, int | None, range]
"""Name of a policy, a training seed, and numbers of episodes."""
Played = tuple[Episodes, OwnStates | None]
"""Episodes of a policy, and its own states if it is a student whose states the teacher labels."""


class _States(Document):
    """JSON of own states, beside their tensors."""

    advice: ClassVar[str] = START_AGAIN
    stride: PositiveInt
    heads: tuple[Head, Head]


class _State(Document):
    """JSON of played episodes, beside their tensors."""

    advice: ClassVar[str] = START_AGAIN
    info: list[dict[str, float | None]]
    states: _States | None


@dataclasses.dataclass(frozen=True)
class PlayPart:
    """Job of an evaluation: plays a part of its episodes, or reads them if they were played before.

    Attributes:
        env: Environment.
        policies: Policies by name; `teacher` is compared with the students in their own states.
        base: Settings of the episodes.
        folder: Folder of the evaluation.
    """

    env: EnvConfig
    policies: Mapping[str, PolicyRuns]
    base: PlayConfig
    folder: Path

    def __call__(self, part: Part, report: Report) -> Played:
        """Return the episodes of a part."""
        (name, run, numbers), entry, teacher = part, self.policies[part[0]], self.policies["teacher"].first
        settings, policy = dataclasses.replace(self.base, first=numbers.start, side=entry.side), entry.runs[run]
        states = OwnStates(run) if entry.kind == "student" and numbers.start < self.base.labeled_episodes else None
        values = {"name": name, "run": run, "settings": settings, "episodes": len(numbers), "env": self.env}
        prints = [None if own is None else fingerprint(own) for own in (policy, teacher if states else None)]
        inputs = StageInputs("evaluate", values | {"policies": prints}, code=(self.env,)).to_json()
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / FOLDER / f"episodes-{digest}.safetensors"
        if fetch(path):
            report(len(numbers), 0)
            return read_played(path, run, numbers.start)
        query = TeacherQuery(teacher, states.add) if states is not None and teacher is not None else None
        episodes = play(self.env, policy, len(numbers), settings, query=query, progress=Increments(report))
        write_played(path, (episodes, states))
        return episodes, states


def write_played(path: Path, played: Played) -> None:
    """Write the episodes of one job."""
    (episodes, states), state = played, dict[str, object]()
    tensors = {name: torch.from_numpy(getattr(episodes, name)) for name in ARRAYS}
    tensors["actions"] = torch.from_numpy(np.concatenate(episodes.actions))
    state["info"] = [
        {key: None if math.isnan(number) else float(number) for key, number in info.items()} for info in episodes.info
    ]
    own, state["states"] = states.to_tensors() if states is not None else ({}, None)
    write_tensors(path, tensors | {f"states.{name}": value for name, value in own.items()}, state)


def read_played(path: Path, run: int | None, first: int) -> Played:
    """Read the episodes of one job from number `first` on; raise CorruptArtifactError if they were changed."""
    tensors, document = read_tensors(path)
    state = _State.parse(document, path)
    try:
        arrays = {name: tensors[name].numpy() for name in ARRAYS}
        ends = np.cumsum(arrays["lengths"])[:-1]
        actions = np.split(tensors["actions"].numpy(), ends)
        own = {name.removeprefix("states."): value for name, value in tensors.items() if name.startswith("states.")}
        states = None
        if state.states is not None:
            states = OwnStates.from_tensors(run, own, state.states.stride, state.states.heads)
    except KeyError as error:
        raise CorruptArtifactError(f"{path}: there is no {error}. {START_AGAIN}") from None
    info = [{key: math.nan if number is None else number for key, number in part.items()} for part in state.info]
    return Episodes(**arrays, info=info, actions=actions, first=first), states
