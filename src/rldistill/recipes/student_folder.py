"""Inputs of a student's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rldistill.core.policy import Policy
from rldistill.data.manifest import Manifest
from rldistill.io.stage_inputs import StageInputs
from rldistill.recipes.config import FROM_REWARD_ALONE, Finetune, QDagger, Scratch
from rldistill.recipes.job import Run
from rldistill.teachers.fingerprint import fingerprint


def student_inputs(run: Run, name: str, teacher: Policy, dataset: Path | None = None) -> StageInputs:
    """Return all that a student depends on except its seed: teacher, dataset, and its part of the run file.

    Without a `dataset`, it is the one in the run's folder. One that was deleted to save room is not compared.
    """
    recipe = run.recipe
    values: dict[str, Any] = {
        "teacher": None if isinstance(recipe, Scratch) else fingerprint(teacher),
        "recipe": recipe,
        f"students.{name}": run.students[name],
        "distill": run.distill,
    }
    folder = dataset or run.folder / "dataset"
    if isinstance(recipe, FROM_REWARD_ALONE):
        values["env"] = run.env
    elif folder.exists():
        values["dataset"] = Manifest.read(folder).digest
    if isinstance(recipe, (*FROM_REWARD_ALONE, Finetune)):
        values["ppo"] = run.ppo
    if isinstance(recipe, QDagger):
        values["dqn"] = run.dqn
    return StageInputs("distill", values)
