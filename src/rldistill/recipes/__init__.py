"""Recipes, which are ways from a teacher to a student, and the names of all classes in run files."""

import dataclasses
from pathlib import Path
from typing import Any

from rldistill.core.schedules import SCHEDULES, Constant
from rldistill.io.trackers import TRACKERS
from rldistill.losses import LOSSES
from rldistill.losses.objective import Term
from rldistill.recipes.adversarial import Adversarial
from rldistill.recipes.dagger import Dagger, OnPolicy
from rldistill.recipes.from_reward import Finetune, FromScratch, JumpStart, Kickstart, Ppd, QDagger
from rldistill.recipes.job import RECIPES
from rldistill.recipes.mutual import Mutual, MutualPPO
from rldistill.recipes.offline import BornAgain, Offline
from rldistill.recipes.reptile import Reptile
from rldistill.students import STUDENTS
from rldistill.students.features import FEATURES

RECIPES.update(
    offline=Offline,
    dagger=Dagger,
    on_policy=OnPolicy,
    born_again=BornAgain,
    mutual=Mutual,
    reptile=Reptile,
    ppd=Ppd,
    kickstart=Kickstart,
    jump_start=JumpStart,
    finetune=Finetune,
    qdagger=QDagger,
    adversarial=Adversarial,
    mutual_ppo=MutualPPO,
    from_scratch=FromScratch,
)
TABLES = {
    "Recipes": RECIPES, "Losses": LOSSES, "Schedules": SCHEDULES, "Students": STUDENTS, "Features": FEATURES,
    "Trackers": TRACKERS,
}  # fmt: skip
"""Classes that a run file selects by name."""
NAMES = {cls: name for table in TABLES.values() for name, cls in table.items()}


def to_document(value: Any) -> Any:
    """Return a value as a run file has it, without the fields that have their default."""
    if isinstance(value, tuple):
        return [to_document(item) for item in value]
    if isinstance(value, Constant):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Term):
        return to_document(value.loss)
    if not dataclasses.is_dataclass(value):
        return value
    cls: Any = type(value)
    name = NAMES.get(cls, f"{cls.__module__}:{cls.__qualname__}")
    fields = {
        field.name: to_document(getattr(value, field.name))
        for field in dataclasses.fields(cls)
        if field.compare and getattr(value, field.name) != field.default
    }
    key = "name" if cls in {*RECIPES.values(), *LOSSES.values(), *TRACKERS.values()} else "type"
    return {key: name, **fields} if fields else name
