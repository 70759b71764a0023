"""The folder of a student, which tells what it was made of."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.policy import Policy
from rldistill.data.manifest import Manifest
from rldistill.distillation.config import DistillConfig
from rldistill.io.atomic import Mode, open_stage, read_json, write_json
from rldistill.recipes.config import FROM_REWARD_ALONE, Finetune, QDagger, Scratch
from rldistill.recipes.job import Run
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.teachers.fingerprint import fingerprint

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FILE = "inputs.json"
ONLY_SPEED = ("num_threads", "device")
"""Settings by which results differ in the last digits at most."""


def asked_of(run: Run, name: str, teacher: Policy, dataset: Path | None = None) -> dict[str, Any]:
    """All that a student depends on but its seed, as JSON: its teacher, the dataset, and its part of the run file.

    From reward alone nobody teaches, so that any teacher may stand beside it. The dataset is in the run's folder where
    no other is named.
    """
    asked: dict[str, Any] = {"teacher": None if isinstance(run.recipe, Scratch) else fingerprint(teacher)}
    asked |= {"recipe": type(run.recipe).__name__, **settings("recipe", run.recipe)}
    asked |= {f"students.{name}": _text(run.students[name]), **settings("distill", run.distill)}
    place = dataset or run.folder / "dataset"
    if isinstance(run.recipe, FROM_REWARD_ALONE):
        asked |= settings("env", run.env)
    elif place.exists():  # or it was taken away to save room
        asked["dataset"] = Manifest.read(place).digest
    if isinstance(run.recipe, (*FROM_REWARD_ALONE, Finetune)):
        asked |= settings("ppo", run.ppo)
    if isinstance(run.recipe, QDagger):
        asked |= settings("dqn", run.dqn)
    return asked


def settings(key: str, part: DataclassInstance) -> dict[str, str]:
    """All of a part of a run file that results depend on, by where it stands."""
    known = [setting.name for setting in dataclasses.fields(part) if setting.name not in ONLY_SPEED]
    return {f"{key}.{name}": _text(getattr(part, name)) for name in known}


def _text(value: object) -> str:
    """A value of a run file, without the addresses that Python tells of a user's own functions and classes."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def require_same(folder: Path, asked: dict[str, Any]) -> None:
    """Raise ConfigError if it is noted that the student of a folder was made of something else."""
    path = folder / FILE
    if not path.exists():  # what was made before this was noted, nobody knows
        return
    known, again = read_json(path), "`rldistill distill FILE --overwrite`"
    if not isinstance(known, dict):
        raise CorruptArtifactError(f"{path}: expected what the student was made of; distil again: {again}")
    if known.get("teacher") != asked.get("teacher"):
        raise ConfigError(
            f"{path}: the student was taught by {known.get('teacher')}, now the teacher is {asked.get('teacher')}. Go "
            f"on with the teacher that it had, or let the new one teach: {again}."
        )
    if known.get("dataset") != asked.get("dataset", known.get("dataset")):
        raise ConfigError(
            f"{path}: the student learned from other data than those that are there now. Let it learn from these: "
            f"{again}."
        )
    # What it does not tell of could not be asked for then, so that it was as it is by default.
    default = settings("distill", DistillConfig()) | settings("ppo", PPOConfig()) | settings("dqn", DQNConfig())
    known = {key: default[key] for key in asked if key in default} | known
    for key in known:
        if key != "dataset" and known[key] != asked.get(key):
            raise ConfigError(
                f"{path}: {key} was {known[key]}, now it is {asked.get(key)}. Go on with the old value, or distil "
                f"again: {again}."
            )


def open_student(folder: Path, asked: dict[str, Any], mode: Mode) -> bool:
    """Prepare a student's folder as `open_stage` does; True if the student is there already.

    Raises:
        ConfigError: what is there was begun with something else.
    """
    path = folder / FILE
    if folder.exists() and [*folder.iterdir()] == [path]:
        path.unlink()  # nothing came of it
    if mode != "overwrite":
        require_same(folder, asked)
    old = folder.exists() and any(folder.iterdir())
    done = open_stage(folder, folder / "policy.json", mode)
    if mode == "overwrite" or not old:
        write_json(path, asked)
    return done
