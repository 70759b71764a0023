"""Task of a learner, and the learner's networks, environments and counters, saved and restored by name."""

import copy
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Policy, on_device
from rldistill.core.spec import EnvConfig
from rldistill.data.replay import ReplayBuffer
from rldistill.distillation.prepare import picture_moments
from rldistill.envs.atari import is_atari
from rldistill.envs.spaces import adapt_env, observation_views
from rldistill.io.metrics import Metrics
from rldistill.io.provenance import provenance
from rldistill.io.tensors import Checkpoint
from rldistill.policies.agent import StatefulPolicy, inference_threads
from rldistill.policies.network import NetworkPolicy
from rldistill.policies.wrappers import with_action_mask
from rldistill.rl.config import LearningConfig
from rldistill.rl.guidance import DistillationWeight, Guidance, TeacherLoss
from rldistill.rl.reward import RewardModel
from rldistill.rl.rollout import RolloutWorker
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native, save_policy

COUNTERS = ("steps", "updates", "offline_updates", "num_rows", "next_eval", "best_score")
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
        head: action head of the student; by default that of the teacher, without one that of the environment.
        score: evaluation that selects the best policy; without it, the last policy is the result.
        reward: reward that PPO learns from, in place of that of the environment.
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
    reward: RewardModel | None = None

    @contextmanager
    def open(self, config: LearningConfig, device: torch.device) -> Iterator[RolloutWorker]:
        """Open the environments and put the teacher on the device.

        Raises:
            ConfigError: there is guidance but no teacher.
            SpecMismatchError: teacher and environment do not fit.
        """
        needs_teacher = self.guidance.needs_teacher or (self.reward is not None and self.reward.needs_teacher)
        teacher = self.teacher if needs_teacher else None
        if teacher is None and needs_teacher:
            raise ConfigError(
                "guidance: it needs a teacher. Give one, or leave out losses, teacher_steps and teacher_weight."
            )
        # Adapted first, since a teacher's needs may turn the environment into an Atari game.
        env = clip_rewards(self.env if self.teacher is None else adapt_env(self.env, self.teacher))
        views = observation_views(env)
        if teacher is not None:
            teacher = with_action_mask(teacher, views.teacher)
            teacher.spec.require_same_input(views.teacher, "the teacher", env.id)
        worker = RolloutWorker(env, views, config.num_envs, self.seed, device)
        with closing(worker.vector), inference_threads(config.num_threads), on_device(device, teacher, self.reward):
            torch.manual_seed(self.seed)
            if teacher is not None:
                worker.teacher = StatefulPolicy(views.policy_on("teacher", teacher), config.num_envs, device=device)
            yield worker

    def save(self, policy: NetworkPolicy, env_steps: int) -> NetworkPolicy:
        """Save the result; return it as it is loaded."""
        Metrics(self.folder).end()
        save_policy(policy.cpu().eval(), self.folder, provenance(self.seed) | {"env_steps": env_steps})
        return load_native(self.folder)


class Learner:
    """Base class of the learners, with everything that a run needs to continue exactly where it was stopped.

    Attributes:
        networks: networks by name; `policy` learns, and `best` is the best policy so far, on the CPU.
        steps: environment steps.
        updates: updates of the networks (rollouts of PPO, gradient steps of DQN).
        offline_updates: gradient steps on the teacher's data, which come first.
    """

    def __init__(
        self,
        task: LearningTask,
        config: LearningConfig,
        worker: RolloutWorker,
        networks: Mapping[str, NetworkPolicy],
        optimizer: torch.optim.Optimizer,
        replay: ReplayBuffer | None = None,
    ) -> None:
        self.task, self.config, self.worker = task, config, worker
        self.networks = {**networks, "best": copy.deepcopy(networks["policy"]).cpu()}
        self.optimizer, self.replay = optimizer, replay
        self.steps = self.updates = self.offline_updates = self.num_rows = 0
        self.next_eval = config.eval_every
        self.best_score: float | None = None
        self.weight = DistillationWeight(task.guidance)
        policy = worker.views.policy_on("student", with_action_mask(networks["policy"], worker.views.student))
        self.student = StatefulPolicy(policy, config.num_envs, device=worker.device)
        self.actors = {"student": self.student}
        self.teacher_loss: TeacherLoss | None = None
        if worker.teacher is not None:
            self.actors["teacher"] = worker.teacher
            self.teacher_loss = TeacherLoss(task.guidance.losses, worker.teacher.policy.spec.head)
        self.no_loss = torch.zeros((), device=worker.device)
        self._started = time.monotonic()
        self.checkpoint = Checkpoint(task.folder)

    @property
    def progress(self) -> float:
        """The finished share of the environment steps."""
        return self.steps / self.config.total_steps

    @property
    def eval_due(self) -> bool:
        """True if it is time for an evaluation."""
        return self.task.score is not None and (self.steps >= self.next_eval or self.progress >= 1)

    def update_weight(self) -> None:
        """Update the weight of the distillation losses with the latest returns, and warn if they have dropped."""
        num_ended = int(self.worker.vector.episode.sum())
        warning = self.weight.update(self.worker.recent, num_ended, self.progress)
        if warning is not None:
            warnings.warn(f"{self.task.folder}: {warning}", stacklevel=2)

    def log(self, policy: NetworkPolicy, terms: Mapping[str, Any]) -> dict[str, Any]:
        """Append a row to `metrics.jsonl`, with the score of the policy if an evaluation is due; return the row."""
        row = {"step": self.steps, "update": self.updates, "return": self.worker.mean_return, **terms}
        returns = {name: getattr(self.task.guidance, name) for name in ("teacher_return", "random_return")}
        row |= {name: value for name, value in returns.items() if value is not None}
        if self.eval_due:
            self.next_eval += self.config.eval_every
            row["score"] = self._evaluate(policy)
        row |= {"seconds": round(time.monotonic() - self._started, 2)}
        self._append(row)
        return row

    def log_start(self, policy: NetworkPolicy) -> None:
        """Append the score of a policy that has learned before its first environment step."""
        if not self.num_rows and self.task.score is not None:
            self._append({"step": 0, "update": self.updates, "score": self._evaluate(policy)})

    def _evaluate(self, policy: NetworkPolicy) -> float:
        """Return the mean score of a policy, and keep the policy if it is the best so far."""
        assert self.task.score is not None
        candidate = copy.deepcopy(policy).cpu().eval()
        mean = float(np.mean(self.task.score(candidate)))
        if self.best_score is None or mean >= self.best_score:
            self.best_score = mean
            self.networks["best"].load_state_dict(candidate.state_dict())
        return mean

    def _append(self, row: Mapping[str, Any]) -> None:
        Metrics(self.task.folder).add(row)
        self.num_rows += 1

    def save_if_due(self) -> None:
        """Save a checkpoint if the last one is long enough ago."""
        self.checkpoint.save_if_due(self.state_dict)

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during training, by name."""
        return {
            "counters": {name: getattr(self, name) for name in COUNTERS},
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizer": self.optimizer.state_dict()["state"],
            "worker": self.worker.state_dict(),
            "actors": {name: actor.state for name, actor in self.actors.items()},
            "weight": self.weight.state_dict(),
            "action_gap": None if self.teacher_loss is None else self.teacher_loss.action_gap,
            "replay": None if self.replay is None else self.replay.state_dict(),
            "reward": None if self.task.reward is None else self.task.reward.state_dict(),
        }

    def restore(self) -> None:
        """Load the checkpoint if there is one, and drop newer rows of `metrics.jsonl`.

        Raises:
            CorruptArtifactError: the checkpoint is damaged, or of another run.
        """
        self.checkpoint.load(self.load_state_dict)
        self.drop_newer_rows()

    def drop_newer_rows(self) -> None:
        """Drop the rows of `metrics.jsonl` that are newer than the state."""
        Metrics(self.task.folder).keep(self.num_rows)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`, and continue its open episodes."""
        for name in COUNTERS:
            setattr(self, name, state["counters"][name])
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        moments = {int(index): values for index, values in state.get("optimizer", {}).items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.weight.load_state_dict(state["weight"])
        if self.teacher_loss is not None:
            self.teacher_loss.action_gap = state["action_gap"]
        if self.replay is not None:
            self.replay.load_state_dict(state["replay"])
        if self.task.reward is not None:
            self.task.reward.load_state_dict(state["reward"])
        if self.worker.load_state_dict(state["worker"]):
            for name, actor in self.actors.items():
                actor.state = state["actors"][name]
            return
        folder = self.task.folder
        warnings.warn(f"{folder}: open episodes could not be replayed exactly; they are dropped", stacklevel=5)
        if self.replay is not None:
            self.replay.truncate()


def clip_rewards(env: EnvConfig) -> EnvConfig:
    """Return the environment with the rewards that a student learns from: those of Atari clipped to their signs."""
    return dataclasses.replace(env, kwargs={**env.kwargs, "reward_clipping": True}) if is_atari(env.id) else env


def fit_normalization(networks: Sequence[NetworkPolicy], obs: Tensor) -> None:
    """Fit the normalization and the data-dependent features of new networks to the first observations `[B, ...]`.

    Pixels are standardized, since a dark, constant background would drive every ReLU the same way.
    """
    for network in networks:
        if obs.dtype == torch.uint8 and not network.normalizes_itself:
            if network.spec.parts:
                network.standardize(*picture_moments(obs, network.spec, vectors=False))
            else:
                pixels = obs / 255
                network.standardize(pixels.mean(), pixels.std())
        network.fit_features(obs)
