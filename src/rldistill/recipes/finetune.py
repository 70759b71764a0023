"""Fine-tuning: distillation, then PPO, which begins with its critic."""

from __future__ import annotations

import dataclasses
from typing import Any

from rldistill.core.errors import ConfigError
from rldistill.core.fields import NonNegative, validated_dataclass
from rldistill.core.policy import Policy
from rldistill.core.schedules import Constant, NonNegativeSchedule
from rldistill.distillation.distill import distill
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.from_reward import FromReward
from rldistill.recipes.job import Run, StudentJob
from rldistill.rl import ppo
from rldistill.rl.task import LearningTask


@validated_dataclass
class Finetune(FromReward):
    """Distill, then continue by PPO with a distillation term that decreases only while the return is kept.

    Attributes:
        weight: initial weight of the distillation losses.
        critic_warmup: environment steps in which only the critic learns.
    """

    weight: NonNegativeSchedule = Constant(1.0)
    critic_warmup: NonNegative = 10_000

    needs_dataset = True

    def guidance_options(self, run: Run) -> dict[str, Any]:
        """Return the losses with their weight and the adaptive gate."""
        return {"losses": run.distill.losses, "weight": self.weight, "gate": "adaptive"}

    def check_students(self, run: Run, teacher: Policy) -> None:
        """Raise also for a critic warmup that leaves no steps."""
        if run.ppo.critic_warmup:
            raise ConfigError("ppo.critic_warmup: finetune has its own setting. Use recipe.critic_warmup.")
        if self.critic_warmup >= run.ppo.total_steps:
            raise ConfigError(
                f"recipe.critic_warmup: expected fewer steps than ppo.total_steps ({run.ppo.total_steps:,}), found "
                f"{self.critic_warmup:,}, so that the policy would never learn"
            )
        super().check_students(run, teacher)

    def initial_policy(self, job: StudentJob, mode: Mode) -> NetworkPolicy:
        """Distill the student into a folder of its own, since a stage's folder holds one policy."""
        folder = job.folder.with_name(f"{job.folder.name}-distilled")
        job.inputs().open_folder(folder, "policy.json", mode)
        config = job.run.distill
        return distill(job.data, job.student, config, folder, seed=job.seed, mode="resume", progress=False)

    def learn(
        self, job: StudentJob, task: LearningTask, initial: NetworkPolicy | None, progress: Progress
    ) -> NetworkPolicy:
        """Train the student by PPO, the critic alone at first."""
        config = dataclasses.replace(job.run.ppo, critic_warmup=self.critic_warmup)
        return ppo.learn(task, config, initial=initial, mode="resume", progress=progress)
