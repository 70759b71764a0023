"""The task of a learner: a student, the environment in which it learns from reward, and its teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Policy, on_device
from rldistill.core.spec import EnvConfig
from rldistill.envs.atari import is_atari
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.io.provenance import provenance
from rldistill.policies.agent import StatefulPolicy, inference_threads
from rldistill.policies.network import NetworkPolicy
from rldistill.policies.wrappers import with_action_mask
from rldistill.rl.config import LearningConfig
from rldistill.rl.guidance import Guidance, TeacherLoss
from rldistill.rl.rollout import RolloutWorker
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native, save_policy

Score = Callable[[NetworkPolicy], NDArray[np.float64]]
"""Function that returns the returns of full episodes of a policy."""


@dataclass(frozen=True)
class LearningTask:
    """A student that learns from reward, with or without a teacher.

    Attributes:
        env: environment; the rewards of Atari are clipped to their signs.
        student: network of the student.
        folder: folder of `policy.safetensors`, `policy.json`, `metrics.jsonl` and `checkpoints/`.
        teacher: policy that labels states or takes steps.
        guidance: use of the teacher.
        head: action head of a student without a teacher; by default that of the environment.
        score: evaluation that selects the best policy; without it, the last policy is the result.
        seed: seed of weights, episodes and random draws.
    """

    env: EnvConfig
    student: AnyStudent
    folder: Path
    teacher: Policy | None = None
    guidance: Guidance = Guidance()
    head: ActionHead | None = None
    score: Score | None = None
    seed: int = 0

    @contextmanager
    def open(self, config: LearningConfig, device: torch.device) -> Iterator[TrainingSetup]:
        """Open the environments and put the teacher on the device.

        Raises:
            ConfigError: there is guidance but no teacher.
            SpecMismatchError: teacher and environment do not fit.
        """
        teacher = self.teacher if self.guidance.needs_teacher else None
        if teacher is None and self.guidance.needs_teacher:
            raise ConfigError("guidance: it needs a teacher. Give one, or leave out losses and teacher_steps.")
        # Adapted first, since a teacher's needs may turn the environment into an Atari game.
        env = clip_rewards(self.env if self.teacher is None else adapt_env(self.env, self.teacher))
        views = observation_views(env)
        if teacher is not None:
            teacher = with_action_mask(teacher, views.teacher)
            teacher.spec.require_same_input(views.teacher, "the teacher", env.id)
        with (
            inference_threads(config.num_threads),
            on_device(device, teacher),
            closing(RolloutWorker(env, views, config.num_envs, self.seed)) as worker,
        ):
            torch.manual_seed(self.seed)
            if teacher is None:
                yield TrainingSetup(worker, device)
            else:
                actor = StatefulPolicy(views.policy_on("teacher", teacher), config.num_envs, device=device)
                yield TrainingSetup(worker, device, actor, TeacherLoss(self.guidance.losses, teacher.spec.head))

    def save(self, policy: NetworkPolicy, env_steps: int) -> NetworkPolicy:
        """Save the result; return it as it is loaded."""
        save_policy(policy.cpu().eval(), self.folder, provenance(self.seed) | {"env_steps": env_steps})
        return load_native(self.folder)


@dataclass(frozen=True)
class TrainingSetup:
    """Environments and teacher of a run.

    Attributes:
        worker: environments.
        device: device of all networks.
        teacher: teacher in every environment; None if nothing is needed of it.
        teacher_loss: distillation losses; None without a teacher.
    """

    worker: RolloutWorker
    device: torch.device
    teacher: StatefulPolicy | None = None
    teacher_loss: TeacherLoss | None = None

    def actor(self, student: NetworkPolicy) -> StatefulPolicy:
        """Return the student in every environment."""
        views = self.worker.views
        policy = views.policy_on("student", with_action_mask(student, views.student))
        return StatefulPolicy(policy, self.worker.num_envs, device=self.device)


def clip_rewards(env: EnvConfig) -> EnvConfig:
    """Return the environment with the rewards that a student learns from: those of Atari clipped to their signs."""
    return dataclasses.replace(env, kwargs={**env.kwargs, "reward_clipping": True}) if is_atari(env.id) else env


def fit_normalization(networks: Sequence[NetworkPolicy], obs: Tensor) -> None:
    """Fit the normalization and the data-dependent features of new networks to the first observations `[B, ...]`.

    Pixels are standardized, since a dark, constant background would drive every ReLU the same way.
    """
    for network in networks:
        if obs.dtype == torch.uint8 and not network.normalizes_itself:
            pixels = obs / 255
            network.standardize(pixels.mean(), pixels.std())
        network.fit_features(obs)
