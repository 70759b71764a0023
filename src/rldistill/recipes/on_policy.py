"""On-policy distillation (Czarnecki 2019, arXiv 1902.02186): the student acts and learns from its newest steps.

With the losses `reverse_kl` and, with a weight of -1, `entropy`, the objective is their per-step cross-entropy
-sum_a student(a|s) log teacher(a|s), without their term for later steps. In the first collection the teacher acts.
"""

from __future__ import annotations

from rldistill.core.fields import Positive, validated_dataclass
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.dagger import Dagger, distill_in_rounds
from rldistill.recipes.job import StudentJob
from rldistill.recipes.offline import FromDataset


@validated_dataclass
class OnPolicy(FromDataset):
    """On-policy distillation: in each round the student alone acts, and learns from these steps only.

    Attributes:
        steps_per_round: environment steps of each round.
        rounds: rounds after the first distillation.
    """

    steps_per_round: Positive
    rounds: Positive = 1

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        """Distill one student with one training seed."""
        rounds = Dagger(rounds=self.rounds, steps_per_round=self.steps_per_round)
        return distill_in_rounds(job, rounds, mode, progress, newest_only=True)
