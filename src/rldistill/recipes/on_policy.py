"""On-policy distillation: the student acts, and learns from what the teacher says of its newest steps.

Czarnecki 2019, arXiv 1902.02186. With the losses `reverse_kl` and, with a weight of -1, `entropy`, what is minimised is
their per-step cross-entropy -sum_a student(a|s) log teacher(a|s), without their term for later steps. The first round
is the run's own collection, in which the teacher acts.
"""

from __future__ import annotations

from rldistill.core.policy import Policy
from rldistill.data.dataset import Dataset
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.config import Dagger, OnPolicy
from rldistill.recipes.dagger import in_rounds
from rldistill.recipes.job import Run


def distill_student(
    run: Run, teacher: Policy, dataset: Dataset, name: str, seed: int, mode: Mode, progress: Progress
) -> NetworkPolicy:
    """Distil one student with one training seed, in `recipe.rounds` rounds after the first."""
    assert isinstance(run.recipe, OnPolicy)
    rounds = Dagger(run.recipe.rounds, run.recipe.steps_per_round)
    return in_rounds(run, rounds, teacher, dataset, name, seed, mode, progress, newest_only=True)
