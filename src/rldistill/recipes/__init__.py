"""Recipes: ways from a teacher to a student. A recipe is one class; this list names those of run files."""

from __future__ import annotations

from rldistill.recipes.born_again import BornAgain
from rldistill.recipes.dagger import Dagger
from rldistill.recipes.finetune import Finetune
from rldistill.recipes.from_reward import FromScratch, JumpStart, Kickstart, Ppd
from rldistill.recipes.job import RECIPES
from rldistill.recipes.offline import Offline
from rldistill.recipes.on_policy import OnPolicy
from rldistill.recipes.qdagger import QDagger

RECIPES.update(
    offline=Offline,
    dagger=Dagger,
    on_policy=OnPolicy,
    born_again=BornAgain,
    ppd=Ppd,
    kickstart=Kickstart,
    jump_start=JumpStart,
    finetune=Finetune,
    qdagger=QDagger,
    from_scratch=FromScratch,
)

__all__ = ["RECIPES"]
