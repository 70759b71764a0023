"""What PPO and DQN share: the environments and the teacher that a learner finds, and the folder that it leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Policy
from rldistill.envs.atari import is_atari
from rldistill.envs.config import EnvConfig
from rldistill.envs.rollout import StatefulPolicy
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.envs.views import ObservationViews
from rldistill.io.atomic import Mode, open_stage
from rldistill.io.metrics import Metrics
from rldistill.io.provenance import provenance
from rldistill.policies.network import NetworkPolicy
from rldistill.policies.wrappers import with_action_mask
from rldistill.rl.guidance import Guidance
from rldistill.rl.rollout import RolloutWorker
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native, save_policy, trust

Score = Callable[[NetworkPolicy], NDArray[np.float64]]
"""Returns of full episodes of a policy."""


@dataclass(frozen=True)
class TrainingSetup:
    """Where a student learns.

    Attributes:
        life: the environments, the rewards of Atari's clipped to their sign.
        sight: what each side sees of them.
        teacher: in every slot, if there is something for it to do.
        head: what its numbers mean.
    """

    life: RolloutWorker
    sight: ObservationViews
    teacher: StatefulPolicy | None
    head: ActionHead | None

    @classmethod
    def of(cls, env: EnvConfig, teacher: Policy | None, guidance: Guidance, num_envs: int, seed: int) -> TrainingSetup:
        """Make the environments, as the teacher needs them; raises SpecMismatchError if it does not fit."""
        if teacher is None and guidance.needs_teacher:
            raise ConfigError("guidance: it needs a teacher, and there is none")
        env = learned_in(env if teacher is None else adapt_env(env, teacher))  # which may make an Atari game of it
        sight = observation_views(env)
        life = RolloutWorker(env, sight, num_envs, seed)
        if teacher is None:
            return cls(life, sight, None, None)
        confined = with_action_mask(teacher, sight.teacher)
        confined.spec.require_same_input(sight.teacher, "the teacher", env.id)
        return cls(life, sight, StatefulPolicy(sight.policy_on("teacher", confined), num_envs), confined.spec.head)

    def player(self, policy: NetworkPolicy) -> StatefulPolicy:
        """The student in every slot."""
        confined = with_action_mask(policy, self.sight.student)
        return StatefulPolicy(self.sight.policy_on("student", confined), self.life.num_envs)


def learned_in(env: EnvConfig) -> EnvConfig:
    """The environment with rewards as a student learns from them: those of Atari clipped to their sign."""
    return dataclasses.replace(env, kwargs={**env.kwargs, "reward_clipping": True}) if is_atari(env.id) else env


class BestPolicyTracker:
    """What has a policy, the candidate, that is scored now and then, and keeps the best one."""

    candidate: NetworkPolicy
    score: Score | None
    best_score: float
    best: dict[str, Tensor]
    metrics: Metrics
    rows: int

    def scored(self) -> dict[str, float]:
        """The score of the candidate, which is kept if it is the best."""
        assert self.score is not None
        self.candidate.eval()
        score = float(np.mean(self.score(self.candidate)))
        self.candidate.train()
        if score >= self.best_score:
            self.best_score, self.best = score, weights_of(self.candidate)
        return {"score": score}

    def add(self, document: dict[str, Any]) -> None:
        """Write a row of `metrics.jsonl`."""
        self.metrics.add(document)
        self.rows += 1


class Learner(Protocol):
    """A run of learning, as the stage needs it."""

    steps: int
    life: RolloutWorker

    def best_policy(self) -> NetworkPolicy: ...


L = TypeVar("L", bound=Learner)


def run_stage(
    student: AnyStudent,
    folder: Path,
    begin: Callable[[], L],
    learn: Callable[[L], None],
    *,
    threads: int,
    seed: int,
    mode: Mode,
) -> NetworkPolicy:
    """Let a student learn and keep its best policy in `folder`, unless that is done."""
    trust(type(student))
    if open_stage(folder, folder / "policy.json", mode):
        return load_native(folder)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        training = begin()
        try:
            learn(training)
        finally:
            training.life.close()
        save_policy(training.best_policy(), folder, provenance(seed) | {"env_steps": training.steps})
        return load_native(folder)
    finally:
        torch.set_num_threads(before)


def show(networks: Sequence[NetworkPolicy], obs: Tensor) -> None:
    """Let new networks see the first observations, `[B, *obs_shape]`, for what they take from data.

    Pixels are standardised by them, since a dark, constant background would drive every ReLU the same way; then fixed
    features look.
    """
    for network in networks:
        if obs.dtype == torch.uint8 and not network.normalizes_itself:
            pixels = obs / 255
            network.standardize(pixels.mean(), pixels.std())
        network.fit_features(obs)


def weights_of(policy: NetworkPolicy) -> dict[str, Tensor]:
    """A copy of all that it has learned."""
    return {name: value.detach().clone() for name, value in policy.state_dict().items()}
