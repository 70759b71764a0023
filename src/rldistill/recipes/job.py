"""The description of a run that all recipes share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rldistill.collection.config import CollectConfig
from rldistill.distillation.config import DistillConfig
from rldistill.envs.config import EnvConfig
from rldistill.evaluation.config import EvaluateConfig
from rldistill.recipes.config import AnyRecipe
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.students import AnyStudent
from rldistill.teachers.load import SavedTeacher, TeacherEnsemble
from rldistill.teachers.training.config import TrainConfig


@dataclass(frozen=True)
class Run:
    """One run file, read and checked; `document` is what it said, overrides included.

    `control` is whether each student also learns from reward alone, `verify` whether a teacher from elsewhere is looked
    at before it teaches.
    """

    name: str
    folder: Path
    seed: int
    env: EnvConfig
    teacher: SavedTeacher | TeacherEnsemble | TrainConfig
    collect: CollectConfig
    recipe: AnyRecipe
    distill: DistillConfig
    ppo: PPOConfig
    dqn: DQNConfig
    control: bool
    students: dict[str, AnyStudent]
    seeds: tuple[int, ...]
    evaluate: EvaluateConfig
    document: dict[str, Any]
    verify: bool = True
