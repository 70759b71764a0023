"""QDagger (Agarwal 2022, arXiv 2206.01626): DQN that learns from the teacher's dataset first."""

from __future__ import annotations

from typing import Any

from rldistill.core.errors import ConfigError
from rldistill.core.fields import validated_dataclass
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Policy
from rldistill.core.schedules import Constant, NonNegativeSchedule
from rldistill.core.spec import PolicySpec
from rldistill.io.progress import Progress
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.from_reward import FromReward
from rldistill.recipes.job import Run, StudentJob
from rldistill.rl import dqn
from rldistill.rl.task import LearningTask
from rldistill.students import AnyStudent


@validated_dataclass
class QDagger(FromReward):
    """DQN on the teacher's dataset, then on this dataset and the student's own steps.

    The distillation losses are multiplied by clip(1 - (G - G_random) / (G_teacher - G_random), 0, 1), G the mean return
    of the student, from its 16th episode on, and by 1 before.

    Attributes:
        weight: weight of the distillation losses, over the course of training.
    """

    weight: NonNegativeSchedule = Constant(1.0)

    needs_dataset = True
    learner = "dqn"

    def guidance_options(self, run: Run) -> dict[str, Any]:
        """Return the losses with their weight and gate."""
        return {"losses": run.distill.losses, "weight": self.weight, "gate": "performance"}

    def check_students(self, run: Run, teacher: Policy) -> None:
        """Raise also if all steps are taken before learning starts."""
        if run.dqn.learning_starts >= run.dqn.total_steps:
            raise ConfigError(
                f"dqn.learning_starts: expected fewer steps than dqn.total_steps ({run.dqn.total_steps:,}), found "
                f"{run.dqn.learning_starts:,}, so that nothing would be learned from reward"
            )
        super().check_students(run, teacher)

    def student_head(self, run: Run, student: AnyStudent, spec: PolicySpec, teacher: Policy) -> ActionHead:
        """Return the head of the Q network."""
        return dqn.new_policy(student, spec, run.dqn).spec.head

    def learn(
        self, job: StudentJob, task: LearningTask, initial: NetworkPolicy | None, progress: Progress
    ) -> NetworkPolicy:
        """Train the student by DQN, on the teacher's dataset first."""
        return dqn.learn(task, job.run.dqn, dataset=job.data, mode="resume", progress=progress)
