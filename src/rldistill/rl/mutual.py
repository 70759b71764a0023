"""Dual policy distillation (Lai 2020, arXiv 2006.04061): learners of PPO that also learn from each other."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from rldistill.core.policy import resolve_device
from rldistill.core.schedules import Schedule
from rldistill.distillation.config import SEED_STRIDE
from rldistill.io.atomic import Mode, open_stage
from rldistill.io.lock import locked
from rldistill.io.metrics import Metrics
from rldistill.io.progress import Progress, stage_progress
from rldistill.io.tensors import Checkpoint
from rldistill.losses import ForwardKL
from rldistill.losses.objective import Term
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import PPOConfig
from rldistill.rl.guidance import Guidance
from rldistill.rl.ppo import PPOLearner
from rldistill.rl.rollout import Rollout
from rldistill.rl.train_state import LearningTask
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native, trust_student

MAX_CONFIDENCE = 100.0
"""Largest factor of the KL divergence in a state, as in the program of the paper."""


@locked
def learn_together(
    task: LearningTask,
    students: Sequence[AnyStudent],
    config: PPOConfig,
    *,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> NetworkPolicy:
    """Train several students by PPO, each in its own environments; return the one with the best score.

    The loss of a student is that of PPO and lambda E_s[c(s) KL(peer(s) || student(s))], with the confidence c of
    `labeled`. In each state the peer is that with the largest value; of two students, it is the other one. The states
    are those of the student's own rollouts, where the paper takes those of the peer.

    The students share the environment steps: each takes `total_steps`, `eval_every` and `critic_warmup` divided by
    their number. `peers/0`, `peers/1`, ... in the folder have the best policy and the metrics of each.

    Args:
        task: task whose guidance is `peer_guidance`; `student` has the settings of the result.
        students: students.
        config: settings of PPO.
        mode: "new" refuses a folder that exists, "resume" continues it, "overwrite" discards it.
        progress: True shows progress on stderr; or an object with `update(done, total, score)`.
    """
    for student in students:
        trust_student(student)
    if open_stage(task.folder, task.folder / "policy.json", mode):
        return load_native(task.folder)
    total_steps, metrics = config.total_steps, Metrics(task.folder)
    with stage_progress(progress, "learn", "steps") as report, ExitStack() as stack:
        learners = open_learners(task, students, config, stack)

        def state() -> dict[str, Any]:
            return {str(number): own.state_dict() for number, own in enumerate(learners)}

        def load(state: Mapping[str, Any]) -> None:
            for number, learner in enumerate(learners):
                learner.load_state_dict(state[str(number)])

        checkpoint = Checkpoint(task.folder)
        checkpoint.load(load)
        for learner in learners:
            learner.drop_newer_rows()
        metrics.keep(learners[0].num_rows)
        while learners[0].progress < 1:
            drawn = [learner.collect() for learner in learners]
            # All labels come before the first update, so that the order of the learners does not count.
            rollouts = [labeled(rollout, learners, own) for own, (rollout, _) in enumerate(drawn)]
            rows = [own.learn(rollout, rng) for own, rollout, (_, rng) in zip(learners, rollouts, drawn, strict=True)]
            row = joint_row(rows)
            metrics.add(row)
            report.update(min(row["step"], total_steps), total_steps, row["return"])
            checkpoint.save_if_due(state)
        for learner in learners:
            learner.task.save(learner.result, learner.steps)
        alike = [learner for learner in learners if learner.task.student == task.student]
        best = max(alike, key=lambda learner: -math.inf if learner.best_score is None else learner.best_score)
        return task.save(best.result, sum(learner.steps for learner in learners))


def open_learners(
    task: LearningTask, students: Sequence[AnyStudent], config: PPOConfig, stack: ExitStack
) -> list[PPOLearner]:
    """Return a learner for each student, with its share of the steps and environments that `stack` closes."""
    device = resolve_device(config.device, "ppo.device")
    names = "total_steps", "eval_every", "critic_warmup"
    own_config = dataclasses.replace(config, **{name: -(-getattr(config, name) // len(students)) for name in names})
    learners = []
    for number, student in enumerate(students):
        folder, seed = task.folder / "peers" / str(number), task.seed + number * SEED_STRIDE
        own = dataclasses.replace(task, student=student, folder=folder, seed=seed)
        learners.append(PPOLearner(own, own_config, stack.enter_context(own.open(own_config, device)), None))
    return learners


def peer_guidance(weight: Schedule, alpha: float) -> Guidance:
    """Return the guidance by peers, with the weight lambda and the exponent `alpha` of the confidence."""
    return Guidance((Term(ForwardKL()),), weight, alpha=alpha)


@torch.no_grad()
def labeled(rollout: Rollout, learners: Sequence[PPOLearner], own: int) -> Rollout:
    """Return the rollout of a learner with the outputs of its peers as labels, and the confidence in them.

    In each state the label is that of the peer with the largest value, and the confidence is
    exp(alpha (V_peer(s) - V_own(s)) / std V), at most 100, where std V is the standard deviation of the values of all
    learners in all states. The division, which the paper leaves to normalized rewards, makes `alpha` independent of the
    scale of the rewards.

    Args:
        rollout: rollout of learner `own`.
        learners: learners.
        own: number of the learner.
    """
    obs, shape = rollout.obs.flatten(0, 1), rollout.reward.shape
    values = torch.stack([learner.value(obs) for learner in learners])
    peers = [number for number in range(len(learners)) if number != own]
    best, choice = values[peers].max(0)
    params = torch.stack([learners[number].policy(obs)[0].params for number in peers])
    alpha = learners[own].task.guidance.alpha
    assert alpha is not None
    exponent = alpha * (best - values[own]) / values.std().clamp_min(1e-8)
    return dataclasses.replace(
        rollout,
        labels=params[choice, torch.arange(len(choice), device=choice.device)].view(*shape, -1),
        confidence=exponent.clamp(max=math.log(MAX_CONFIDENCE)).exp().view(shape),
    )


def joint_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of all learners: the sum of their steps, the best score, and the means of all others."""
    row: dict[str, Any] = {}
    for name in rows[0]:
        known = [own[name] for own in rows if own[name] is not None]
        row[name] = float(np.mean(known)) if known else None
    row |= {"step": sum(own["step"] for own in rows), "update": rows[0]["update"]}
    if "score" in row:
        row["score"] = max(own["score"] for own in rows)
    return row
