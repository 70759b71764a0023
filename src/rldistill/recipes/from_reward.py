"""Learning from reward, beside a teacher or alone: `ppd kickstart jump_start finetune qdagger`, and the control.

All are PPO, or DQN, with different guidance; the best policy by episodes of its own is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy
from rldistill.core.schedules import Linear
from rldistill.data.dataset import Dataset
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.evaluation.episodes import VALIDATION, play
from rldistill.io.atomic import Mode
from rldistill.io.progress import Progress
from rldistill.io.stage_inputs import StageInputs
from rldistill.losses.objective import require_comparable
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.config import Finetune, JumpStart, Kickstart, Ppd, QDagger, Scratch
from rldistill.recipes.job import Run
from rldistill.recipes.student_folder import student_inputs
from rldistill.rl import dqn, ppo, q_network
from rldistill.rl.guidance import Guidance
from rldistill.rl.training import learned_in
from rldistill.students.storage import load_native

CENSORED = 10
"""The control takes at most so many times the steps of the student."""


def distill_student(
    run: Run,
    teacher: Policy,
    dataset: Dataset | None,
    name: str,
    seed: int,
    mode: Mode,
    progress: Progress,
) -> NetworkPolicy:
    """One student with one training seed, by the run's recipe."""
    folder = run.folder / "students" / name / f"seed-{seed}"
    inputs = student_inputs(run, name, teacher)
    if (folder / "policy.json").exists() and mode == "resume":
        inputs.require_same(folder)
        return load_native(folder)
    require_learnable(run, teacher)
    guidance = guidance_of(run, teacher)
    student = run.students[name]
    learn: Callable[..., NetworkPolicy]
    if isinstance(run.recipe, QDagger):
        learn = partial(dqn.learn, run.env, student, run.dqn, folder, dataset=dataset)
    elif isinstance(run.recipe, Finetune):
        assert dataset is not None
        inputs.open_folder(_beside(folder), "policy.json", mode)
        initial = distill(dataset, student, run.distill, _beside(folder), seed=seed, mode="resume", progress=False)
        config = dataclasses.replace(run.ppo, critic_warmup=run.recipe.critic_warmup)
        learn = partial(ppo.learn, run.env, student, config, folder, initial=initial)
    else:
        learn = partial(ppo.learn, run.env, student, run.ppo, folder)
    inputs.open_folder(folder, "policy.json", mode)
    return learn(
        teacher=teacher,
        guidance=guidance,
        score=partial(own_returns, run, teacher),
        seed=seed,
        mode="resume",
        progress=progress,
    )


def control(
    run: Run, teacher: Policy, name: str, seed: int, steps: int, mode: Mode, progress: Progress
) -> NetworkPolicy:
    """The same student from reward alone, into `controls/`, with at most ten times the steps that it took."""
    place = run.folder / "controls" / name / f"seed-{seed}"
    env, student, total = adapt_env(run.env, teacher), run.students[name], CENSORED * steps
    learn: Callable[..., NetworkPolicy]
    if isinstance(run.recipe, QDagger):
        of_dqn = dataclasses.replace(run.dqn, total_steps=total)
        learn = partial(dqn.learn, env, student, of_dqn, place)
        values: dict[str, Any] = {"dqn": of_dqn}
    else:
        of_ppo = dataclasses.replace(run.ppo, total_steps=total)
        learn = partial(ppo.learn, env, student, of_ppo, place, head=teacher.spec.head)
        values = {"ppo": of_ppo}
    inputs = StageInputs("distill", values | {f"students.{name}": student, "env": run.env})
    inputs.open_folder(place, "policy.json", mode)
    return learn(score=partial(own_returns, run, teacher), seed=seed, mode="resume", progress=progress)


def require_learnable(run: Run, teacher: Policy) -> None:
    """Raise, before anything is collected, what would else be raised at the first step of learning from reward.

    Raises:
        ConfigError: a student that does not learn so, or a budget that leaves nothing to learn.
        SpecMismatchError: actions that the learner cannot choose, losses that do not fit teacher and student.
    """
    if isinstance(run.recipe, Finetune):
        if run.ppo.critic_warmup:
            raise ConfigError("ppo.critic_warmup: finetune has its own: give recipe.critic_warmup")
        if run.recipe.critic_warmup >= run.ppo.total_steps:
            raise ConfigError(
                f"recipe.critic_warmup: in all of {run.ppo.total_steps:,} steps the critic alone would learn; expected "
                f"fewer than ppo.total_steps, found {run.recipe.critic_warmup:,}"
            )
    if isinstance(run.recipe, QDagger) and run.dqn.learning_starts >= run.dqn.total_steps:
        raise ConfigError(
            f"dqn.learning_starts: nothing would be learned from reward; expected fewer than dqn.total_steps, "
            f"{run.dqn.total_steps:,}, found {run.dqn.learning_starts:,}"
        )
    seen = observation_views(run.env if isinstance(run.recipe, Scratch) else adapt_env(run.env, teacher)).student
    losses = () if isinstance(run.recipe, JumpStart | Scratch) else run.distill.losses
    for student in run.students.values():
        if isinstance(run.recipe, QDagger):
            head = q_network.new_policy(student, seen, run.dqn).spec.head
        else:
            like = None if isinstance(run.recipe, Scratch) else teacher.spec.head
            head = ppo.new_policy(student, seen, like, losses).spec.head
        require_comparable(losses, teacher.spec.head, head)


def guidance_of(run: Run, teacher: Policy) -> Guidance:
    """What the run's recipe makes of the teacher.

    Raises:
        ConfigError: a gate that can never open, since the teacher is no better than random play.
    """
    recipe = run.recipe
    if isinstance(recipe, Scratch):
        return Guidance()
    # As it learns from them: those of Atari clipped to their sign.
    learned = dataclasses.replace(run, env=learned_in(adapt_env(run.env, teacher)))
    best, worst = (float(own_returns(learned, teacher, one, side).mean()) for one, side in _ends(teacher))
    beside: dict[str, Any] = {"losses": run.distill.losses}
    if isinstance(recipe, Ppd):
        beside |= {"weight": recipe.weight, "proximal": True}
    elif isinstance(recipe, Kickstart):
        beside |= {"weight": recipe.weight, "gate": recipe.gate}
    elif isinstance(recipe, JumpStart):
        beside = {"teacher_steps": Linear(recipe.first_steps, 0.0, recipe.until)}
    elif isinstance(recipe, Finetune):
        beside |= {"weight": recipe.weight, "gate": "adaptive"}
    elif isinstance(recipe, QDagger):
        beside |= {"weight": recipe.weight, "gate": "performance"}
    return Guidance(**beside, teacher_return=best, random_return=worst)


def _ends(teacher: Policy) -> list[tuple[Policy | None, Literal["student", "teacher"]]]:
    return [(teacher, "teacher"), (None, "student")]


def _beside(folder: Path) -> Path:
    """Where the student that is fine-tuned lies, since a stage's folder holds one policy."""
    return folder.with_name(f"{folder.name}-distilled")


def own_returns(
    run: Run, teacher: Policy, policy: Policy | None, side: Literal["student", "teacher"] = "student"
) -> NDArray[np.float64]:
    """Of the episodes by which the best policy is chosen; others than those that it is judged by at the end."""
    episodes = (run.dqn if isinstance(run.recipe, QDagger) else run.ppo).eval_episodes
    return play(adapt_env(run.env, teacher), policy, episodes, seed=run.seed, split=VALIDATION, side=side).returns
