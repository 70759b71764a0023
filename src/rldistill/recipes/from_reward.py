"""Recipes that learn from reward by PPO or DQN, and the control that learns from reward alone.

The result is the best policy by validation episodes.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError
from rldistill.core.fields import NonNegative, Positive, PositiveFraction, validated_dataclass
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Policy
from rldistill.core.schedules import Constant, Linear, NonNegativeSchedule, Schedule
from rldistill.core.spec import PolicySpec, Side
from rldistill.distillation.distill import distill
from rldistill.distillation.weighting import require_weighting
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.evaluation.episodes import play
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.losses.objective import require_comparable
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Recipe, Run, StudentJob
from rldistill.recipes.offline import load_initial, require_initial, require_other_folder
from rldistill.rl import dqn, ppo
from rldistill.rl.guidance import Guidance
from rldistill.rl.train_state import LearningTask, clip_rewards
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native
from rldistill.teachers.fingerprint import fingerprint

CONTROL_BUDGET = 10
"""Environment steps of the control, as a multiple of those of the student."""


class FromReward(Recipe):
    """Base class of recipes that learn from reward with the guidance of a teacher, by default with PPO.

    Attributes:
        weight, gate, proximal: settings of `Guidance`.
    """

    learner: ClassVar[Literal["ppo", "dqn"] | None] = "ppo"
    weight: Schedule = Constant(1.0)
    gate: Literal["none", "performance", "adaptive"] = "none"
    proximal: ClassVar[bool] = False

    @property
    def needs_dataset(self) -> bool:
        return False

    def guidance_options(self, run: Run) -> dict[str, Any]:
        """Return the settings of `Guidance` for this recipe, without the returns of teacher and random play."""
        options = {"weight": self.weight, "gate": self.gate, "proximal": self.proximal}
        return {"losses": run.distill.losses, **options}

    def student_head(self, run: Run, student: AnyStudent, spec: PolicySpec, teacher: Policy) -> ActionHead:
        """Return the action head of a student; raise if the settings do not let it learn from reward."""
        losses = self.guidance_options(run).get("losses", ())
        return ppo.new_policy(student, spec, teacher.spec.head, losses).spec.head

    def learn(self, job: StudentJob, task: LearningTask, mode: Mode, progress: Progress) -> NetworkPolicy:
        """Train the student in its folder, which is open; `mode` is for other folders."""
        return ppo.learn(task, job.run.ppo, mode="resume", progress=progress)

    def check(self, run: Run, teacher: Policy) -> None:
        self.guidance(run, teacher)

    def guidance(self, run: Run, teacher: Policy) -> Guidance:
        """Return the guidance by the teacher.

        Raises:
            ConfigError: a student cannot learn from reward, or the gate can never open, since the teacher is no better
                than random play.
            SpecMismatchError: a loss does not fit teacher and student.
        """
        if self.needs_teacher and teacher.spec.members:
            raise ConfigError(
                f"teachers: {type(self).__name__} follows one teacher. Use `teacher` with an ensemble of them, or a "
                "recipe that learns from a dataset (offline, dagger)."
            )
        if self.needs_teacher:
            require_weighting(run.distill.weighting, teacher.spec)
        options = self.guidance_options(run)
        spec = observation_views(adapt_env(run.env, teacher)).student
        for student in run.students.values():
            head = self.student_head(run, student, spec, teacher)
            require_comparable(options.get("losses", ()), teacher.spec.head, head)
        if not self.needs_teacher:
            return Guidance()
        # The student learns from clipped rewards on Atari, so its return is compared with such returns.
        clipped = dataclasses.replace(run, env=clip_rewards(adapt_env(run.env, teacher)))
        best = float(validation_returns(clipped, teacher, teacher, "teacher").mean())
        worst = float(validation_returns(clipped, teacher, None).mean())
        return Guidance(**options, teacher_return=best, random_return=worst)

    def distill(self, job: StudentJob, mode: Mode, progress: Progress) -> NetworkPolicy:
        inputs = job.inputs()
        if mode == "resume" and (job.folder / "policy.json").exists():  # so that the teacher is not played again
            inputs.require_same(job.folder)
            return load_native(job.folder)
        guidance = self.guidance(job.run, job.teacher)
        inputs.open_folder(job.folder, "policy.json", mode)
        score = partial(validation_returns, job.run, job.teacher)
        task = LearningTask(job.run.env, job.student, job.folder, job.teacher, guidance, score=score, seed=job.seed)
        return self.learn(job, task, mode, progress)


@validated_dataclass
class Ppd(FromReward):
    """PPO with a distillation term, weighted by the clipped probability ratio (Spigler 2024, arXiv 2407.15134).

    Attributes:
        weight: weight lambda of the distillation losses, over the course of training.
    """

    weight: NonNegativeSchedule = Constant(1.0)

    proximal = True


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
        return {"teacher_steps": Linear(self.first_steps, 0.0, self.until)}


@validated_dataclass
class FromScratch(FromReward):
    """PPO from reward alone."""

    needs_teacher = False

    def guidance_options(self, run: Run) -> dict[str, Any]:
        return {}


@validated_dataclass
class Finetune(FromReward):
    """Distill, then continue by PPO with a distillation term that decreases only while the return is kept.

    Attributes:
        weight: initial weight of the distillation losses.
        critic_warmup: environment steps in which only the critic learns.
        initial: folder of a student, such as `runs/x/students/mlp/seed-0`, that learns on in place of a newly distilled
            one. It needs no dataset; the environment steps of the student do not include those that `initial` had.
    """

    weight: NonNegativeSchedule = Constant(1.0)
    critic_warmup: NonNegative = 10_000
    initial: str | None = None

    gate = "adaptive"

    @property
    def needs_dataset(self) -> bool:
        return self.initial is None

    def inputs(self, student: AnyStudent) -> dict[str, Any]:
        return {} if self.initial is None else {"recipe.initial": fingerprint(load_initial(self.initial, student))}

    def student_head(self, run: Run, student: AnyStudent, spec: PolicySpec, teacher: Policy) -> ActionHead:
        if run.ppo.critic_warmup:
            raise ConfigError("ppo.critic_warmup: finetune has its own setting. Use recipe.critic_warmup.")
        if self.critic_warmup >= run.ppo.total_steps:
            raise ConfigError(
                f"recipe.critic_warmup: expected fewer steps than ppo.total_steps ({run.ppo.total_steps:,}), found "
                f"{self.critic_warmup:,}, so that the policy would never learn"
            )
        head = super().student_head(run, student, spec, teacher)
        if self.initial is not None:
            require_initial(self.initial, student, dataclasses.replace(spec, head=head), run.env.id)
        return head

    def check(self, run: Run, teacher: Policy) -> None:
        if self.initial is not None:
            for name in run.students:
                require_other_folder(self.initial, run, name)
        super().check(run, teacher)

    def learn(self, job: StudentJob, task: LearningTask, mode: Mode, progress: Progress) -> NetworkPolicy:
        if self.initial is None:
            # Into a folder of its own, since a stage's folder holds one policy.
            folder = job.folder.with_name(f"{job.folder.name}-distilled")
            job.inputs().open_folder(folder, "policy.json", mode)
            settings = job.run.distill
            initial = distill(job.data, job.student, settings, folder, seed=job.seed, mode="resume", progress=False)
        else:
            initial = load_initial(self.initial, job.student)
        config = dataclasses.replace(job.run.ppo, critic_warmup=self.critic_warmup)
        return ppo.learn(task, config, initial=initial, mode="resume", progress=progress)


@validated_dataclass
class QDagger(FromReward):
    """DQN on the teacher's dataset, then on this dataset and the student's own steps.

    Agarwal 2022, arXiv 2206.01626. The distillation losses are multiplied by
    clip(1 - (G - G_random) / (G_teacher - G_random), 0, 1), G the mean return of the student, from its 16th episode on,
    and by 1 before.

    Attributes:
        weight: weight of the distillation losses, over the course of training.
    """

    weight: NonNegativeSchedule = Constant(1.0)

    learner = "dqn"
    gate = "performance"

    @property
    def needs_dataset(self) -> bool:
        return True

    def student_head(self, run: Run, student: AnyStudent, spec: PolicySpec, teacher: Policy) -> ActionHead:
        if run.dqn.learning_starts >= run.dqn.total_steps:
            raise ConfigError(
                f"dqn.learning_starts: expected fewer steps than dqn.total_steps ({run.dqn.total_steps:,}), found "
                f"{run.dqn.learning_starts:,}, so that nothing would be learned from reward"
            )
        return dqn.new_policy(student, spec, run.dqn).spec.head

    def learn(self, job: StudentJob, task: LearningTask, mode: Mode, progress: Progress) -> NetworkPolicy:
        return dqn.learn(task, job.run.dqn, dataset=job.data, mode="resume", progress=progress)


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
    return play(adapt_env(run.env, teacher), policy, episodes, run.play_config(side=side)).returns
