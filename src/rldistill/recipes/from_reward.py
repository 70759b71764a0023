"""Recipes that learn from reward by PPO, and the control that learns from reward alone.

The result is the best policy by validation episodes.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from rldistill.core.fields import Positive, PositiveFraction, validated_dataclass
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Policy
from rldistill.core.schedules import Constant, Linear, NonNegativeSchedule
from rldistill.core.spec import PolicySpec, Side
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.evaluation.episodes import VALIDATION, PlayConfig, play
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.losses.objective import require_comparable
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Recipe, Run, StudentJob
from rldistill.rl import dqn, ppo
from rldistill.rl.guidance import Guidance
from rldistill.rl.task import LearningTask, clip_rewards
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native

CONTROL_BUDGET = 10
"""Environment steps of the control, as a multiple of those of the student."""


class FromReward(Recipe):
    """Base class of recipes that learn from reward with the guidance of a teacher, by default with PPO."""

    needs_dataset = False
    learner: ClassVar[Literal["ppo", "dqn"] | None] = "ppo"

    def guidance_options(self, run: Run) -> dict[str, Any]:
        """Return the settings of `Guidance` for this recipe."""
        raise NotImplementedError

    def student_head(self, run: Run, student: AnyStudent, spec: PolicySpec, teacher: Policy) -> ActionHead:
        """Return the action head of a student; raise if it cannot learn from reward."""
        losses = self.guidance_options(run).get("losses", ())
        return ppo.new_policy(student, spec, teacher.spec.head, losses).spec.head

    def initial_policy(self, job: StudentJob, mode: Mode) -> NetworkPolicy | None:
        """Return a policy with the initial weights; None for random weights."""
        return None

    def learn(
        self, job: StudentJob, task: LearningTask, initial: NetworkPolicy | None, progress: Progress
    ) -> NetworkPolicy:
        """Train the student."""
        return ppo.learn(task, job.run.ppo, initial=initial, mode="resume", progress=progress)

    def check(self, run: Run, teacher: Policy) -> None:
        """Raise for a student, a loss, a budget or a gate with which nothing can be learned from reward."""
        self.check_students(run, teacher)
        self.guidance(run, teacher)

    def check_students(self, run: Run, teacher: Policy) -> None:
        """Raise for students that cannot learn from reward, and for losses that do not fit them."""
        losses = self.guidance_options(run).get("losses", ())
        spec = observation_views(adapt_env(run.env, teacher)).student
        for student in run.students.values():
            require_comparable(losses, teacher.spec.head, self.student_head(run, student, spec, teacher))

    def guidance(self, run: Run, teacher: Policy) -> Guidance:
        """Return the guidance of the teacher.

        Raises:
            ConfigError: the gate can never open, since the teacher is no better than random play.
        """
        # The student learns from clipped rewards on Atari, so its return is compared with such returns.
        clipped = dataclasses.replace(run, env=clip_rewards(adapt_env(run.env, teacher)))
        best = float(validation_returns(clipped, teacher, teacher, "teacher").mean())
        worst = float(validation_returns(clipped, teacher, None).mean())
        return Guidance(**self.guidance_options(run), teacher_return=best, random_return=worst)

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        """Train one student with one training seed."""
        inputs = job.inputs()
        if mode == "resume" and (job.folder / "policy.json").exists():
            inputs.require_same(job.folder)
            return load_native(job.folder)
        self.check_students(job.run, job.teacher)
        guidance = self.guidance(job.run, job.teacher)
        initial = self.initial_policy(job, mode)
        inputs.open_folder(job.folder, "policy.json", mode)
        score = partial(validation_returns, job.run, job.teacher)
        task = LearningTask(job.run.env, job.student, job.folder, job.teacher, guidance, score=score, seed=job.seed)
        return self.learn(job, task, initial, progress)


@validated_dataclass
class Ppd(FromReward):
    """PPO with a distillation term, weighted by the clipped probability ratio (Spigler 2024, arXiv 2407.15134).

    Attributes:
        weight: weight lambda of the distillation losses, over the course of training.
    """

    weight: NonNegativeSchedule = Constant(1.0)

    def guidance_options(self, run: Run) -> dict[str, Any]:
        """Return the losses with their proximal weight."""
        return {"losses": run.distill.losses, "weight": self.weight, "proximal": True}


@validated_dataclass
class Kickstart(FromReward):
    """PPO with a distillation term of decreasing weight (Schmitt 2018, arXiv 1803.03835).

    Attributes:
        weight: weight lambda of the distillation losses, over the course of training.
        gate: "performance" also multiplies it by clip(1 - (G - G_random) / (G_teacher - G_random), 0, 1), G the mean
            return of the student.
    """

    weight: NonNegativeSchedule = Linear(1.0, 0.0)
    gate: Literal["none", "performance"] = "none"

    def guidance_options(self, run: Run) -> dict[str, Any]:
        """Return the losses with their weight and gate."""
        return {"losses": run.distill.losses, "weight": self.weight, "gate": self.gate}


@validated_dataclass
class JumpStart(FromReward):
    """PPO with a teacher that takes the first steps of each episode (Uchendu 2023, arXiv 2204.02372).

    Attributes:
        first_steps: steps of the teacher at the start of training; they decrease linearly.
        until: fraction of the training after which the teacher takes no steps.
    """

    first_steps: Positive
    until: PositiveFraction = 0.7

    def guidance_options(self, run: Run) -> dict[str, Any]:
        """Return the steps of the teacher."""
        return {"teacher_steps": Linear(self.first_steps, 0.0, self.until)}


@validated_dataclass
class FromScratch(FromReward):
    """PPO from reward alone."""

    needs_teacher = False

    def guidance_options(self, run: Run) -> dict[str, Any]:
        """Return no settings."""
        return {}

    def guidance(self, run: Run, teacher: Policy) -> Guidance:
        """Return no guidance; the teacher is not played."""
        return Guidance()


def train_control(job: StudentJob, student_steps: int, mode: Mode, progress: Progress) -> NetworkPolicy:
    """Train the student of a job from reward alone into `controls/`, with ten times its environment steps."""
    run, learner = job.run, job.run.recipe.learner or "ppo"
    folder = run.out / "controls" / job.name / f"seed-{job.seed}"
    head = None if learner == "dqn" else job.teacher.spec.head
    score = partial(validation_returns, run, job.teacher)
    task = LearningTask(adapt_env(run.env, job.teacher), job.student, folder, head=head, score=score, seed=job.seed)
    config: Any = dataclasses.replace(getattr(run, learner), total_steps=CONTROL_BUDGET * student_steps)
    inputs = StageInputs("distill", {learner: config, f"students.{job.name}": job.student, "env": run.env})
    inputs.open_folder(folder, "policy.json", mode)
    learn = dqn.learn if learner == "dqn" else ppo.learn
    return learn(task, config, mode="resume", progress=progress)


def validation_returns(run: Run, teacher: Policy, policy: Policy | None, side: Side = "student") -> NDArray[np.float64]:
    """Return the returns of the episodes that select the best policy, which are not those of the evaluation."""
    episodes = getattr(run, run.recipe.learner or "ppo").eval_episodes
    return play(adapt_env(run.env, teacher), policy, episodes, PlayConfig(run.seed, VALIDATION, side=side)).returns
