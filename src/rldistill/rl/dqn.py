"""DQN with a teacher beside it, or without one: double, dueling, n-step, and the phases of QDagger."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.core.batch import Labels
from rldistill.core.errors import ConfigError
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.data.dataset import Dataset, action_gap
from rldistill.distillation.gradient import prepare
from rldistill.envs.atari import is_atari
from rldistill.envs.config import EnvConfig
from rldistill.envs.rollout import StatefulPolicy, rollout
from rldistill.envs.seeding import block_generator
from rldistill.io.atomic import Mode
from rldistill.io.metrics import Metrics
from rldistill.io.progress import Progress, stage_progress
from rldistill.losses import functional
from rldistill.losses.objective import default_temperature, unreduced, with_temperatures
from rldistill.policies.layers import flatten_weights
from rldistill.policies.network import NetworkPolicy
from rldistill.policies.wrappers import has_mask, random_legal
from rldistill.rl.config import DQNConfig
from rldistill.rl.dueling import Dueling
from rldistill.rl.guidance import DistillationWeight, Guidance
from rldistill.rl.ppo import ALONE, NO_LOSS
from rldistill.rl.q_network import ReplayObsEncoder, new_policy, worth_keeping
from rldistill.rl.replay import ReplayBuffer, TransitionBatch
from rldistill.rl.teacher_data import TeacherData
from rldistill.rl.train_state import restore, save
from rldistill.rl.training import BestPolicyTracker, Score, TrainingSetup, run_stage, show, weights_of
from rldistill.students import AnyStudent

SAVE_EVERY = 30.0
"""At least so many seconds lie between checkpoints, which hold the whole replay."""
SAVING = 0.03
"""The share of the time that may go into them."""
NOTE_EVERY = 2_000
"""Environment steps between rows of `metrics.jsonl`."""
LOOKED_AT = 1_000
"""Observations that pixels are standardised by where there are no teacher's data."""


def learn(
    env: EnvConfig,
    student: AnyStudent,
    config: DQNConfig,
    folder: Path,
    *,
    teacher: Policy | None = None,
    guidance: Guidance = ALONE,
    dataset: Dataset | None = None,
    score: Score | None = None,
    seed: int = 0,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> NetworkPolicy:
    """Let a student learn Q values from reward, and from its teacher.

    The loss is the mean over the batch of h(Q(s, a) - R - gamma^n max_a' Q_target(s', a')) + lambda D, h the Huber
    loss, D the distillation losses of `guidance` for each state and lambda its weight. With a `dataset`, this is
    minimised on the teacher's data first (QDagger, Agarwal 2022, arXiv 2206.01626), and later on these and the
    student's own together, each as likely as another, so that the student does not forget what it has not met yet. On
    the teacher's data n is 1.

    Args:
        env, student, folder, teacher, guidance, score, seed, mode, progress: as in `rl.ppo.learn`.
        config: how it learns from reward.
        dataset: the teacher's data.

    Raises:
        ConfigError: a student that does not learn by gradient, or that remembers.
        SpecMismatchError: actions that are not one choice; teacher, student and environment that do not fit.
    """

    def both_phases(training: _Training) -> None:
        with stage_progress(progress, "learn", "steps") as report:
            if dataset is not None:
                training.study(dataset, report)
            training.run(report)

    return run_stage(
        student,
        folder,
        lambda: _Training(env, student, config, folder, teacher, guidance, score, seed, dataset),
        both_phases,
        threads=config.num_threads,
        seed=seed,
        mode=mode,
    )


class _Training(BestPolicyTracker):
    """The state of one run: networks, optimiser, environments, replay, the weight of the teacher, the best so far."""

    def __init__(
        self,
        env: EnvConfig,
        student: AnyStudent,
        config: DQNConfig,
        folder: Path,
        teacher: Policy | None,
        guidance: Guidance,
        score: Score | None,
        seed: int,
        dataset: Dataset | None,
    ) -> None:
        self.config, self.folder, self.guidance, self.score, self.seed = config, folder, guidance, score, seed
        setting = TrainingSetup.of(env, teacher if guidance.losses else None, guidance, config.num_envs, seed)
        self.life, self.teacher, self.head = setting.life, setting.teacher, setting.head
        self.spec, self.clipped = setting.sight.student, is_atari(setting.life.env.id)
        torch.manual_seed(seed)
        self.networks: Mapping[str, NetworkPolicy] = {
            name: new_policy(student, self.spec, config)
            for name in ("policy", "target", *(["mean"] if config.ema_decay else []))
        }
        self.policy, self.target = self.networks["policy"], self.networks["target"]
        self.candidate = self.networks.get("mean", self.policy)
        self._agree()
        self.player = setting.player(self.policy)
        labels = 0 if self.head is None else self.head.num_params
        self.kept = ReplayObsEncoder(self.policy, dataset is not None and worth_keeping(self.policy, dataset))
        self.taught: TeacherData | None = None
        self.replay: ReplayBuffer | None = ReplayBuffer(self.kept.spec, config.buffer_size, config.num_envs, labels)
        self.replay.require_room(config.n_steps)
        self.weights = flatten_weights(self.policy)
        self.mean = flatten_weights(self.candidate) if config.ema_decay else None
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            [self.weights], config.learning_rate, eps=1.5e-4, fused=True
        )
        self.weaning = DistillationWeight(guidance)
        self.gap = torch.zeros(())
        self.steps = self.updates = self.studied = self.rows = 0
        self.best_score, self.best = -np.inf, weights_of(self.policy)
        self.next_eval = config.eval_every
        self.next_save = time.monotonic() + SAVE_EVERY
        self.noted: list[dict[str, Tensor]] = []
        self.memories: Mapping[str, StatefulPolicy] = {"student": self.player} | (
            {} if self.teacher is None else {"teacher": self.teacher}
        )
        restore(self)
        self.metrics = Metrics(folder)
        self.metrics.keep(self.rows)

    @property
    def done(self) -> float:
        """How far along it is, from 0 to 1."""
        return self.steps / self.config.total_steps

    def scored(self) -> dict[str, float]:
        """The score of the candidate, which is kept if it is the best."""
        self._take_buffers()
        return super().scored()

    def best_policy(self) -> NetworkPolicy:
        """What is kept, its last layer in one."""
        self._take_buffers()
        if self.score is not None:
            self.candidate.load_state_dict(self.best)
        if isinstance(self.candidate.output, Dueling):
            self.candidate.output = self.candidate.output.joined()
        return self.candidate.eval()

    def study(self, dataset: Dataset, progress: Progress) -> None:
        """Learn from the teacher's data, with the whole weight of the distillation losses."""
        if not self.updates:
            prepare(self.policy, dataset)
            self._agree()
        if self.head is None and self.guidance.losses:
            raise ConfigError("guidance: it needs a teacher, and there is none")
        if self.done >= 1:
            return
        self.taught = TeacherData.of(dataset, self.policy if self.kept.features else None, self.config, self.clipped)
        weight = self.guidance.weight(0.0) if self.guidance.losses else 0.0
        while self.studied < self.config.offline_steps:
            rng = block_generator(self.seed, "train", 2, 0, self.studied)
            self._step(self.taught.sample(self.config.batch_size, rng), weight)
            self.studied += 1
            self._save_now_and_then()
            progress.update(self.studied, self.config.offline_steps + self.config.total_steps)

    def run(self, progress: Progress) -> None:
        config = self.config
        started = time.monotonic()
        seen: dict[str, NDArray[Any]] = {}

        def act(obs: NDArray[Any]) -> NDArray[Any]:
            rng = block_generator(self.seed, "train", 1, 0, self.steps)
            action = self.player.step(obs).mode().numpy()
            explore = rng.random(len(obs)) < config.epsilon_schedule(self.done)
            shown = self.life.shown(obs)
            at_random = rng.integers(0, self.spec.head.nvec[0], len(obs))
            if has_mask(self.spec):
                at_random = random_legal(shown.numpy(), self.spec, rng)
            seen["obs"], seen["age"] = (
                self.kept.of(shown),
                np.array([len(actions) for actions in self.life.episode_actions]),
            )
            if self.teacher is not None:
                seen["labels"] = self.teacher.step(obs).params.numpy()
            return np.where(explore, at_random, action)

        if self.steps >= config.total_steps:
            return
        if self.studied and not self.rows and self.score is not None:
            self.add({"step": 0, "update": self.updates} | self.scored())
        for transition in rollout(self.life.vector, self.life.obs, act):
            if transition is None:
                continue
            step = transition.step
            last = self.kept.of(self.life.shown(step.last_obs)) if len(step.ended) else step.last_obs
            cut = {int(slot): last[number] for number, slot in enumerate(step.ended) if not step.terminated[slot]}
            terminal = step.terminated | (step.reward != 0) & config.terminal_on_reward
            assert self.replay is not None
            self.replay.add(
                seen["obs"], cut, action=transition.action, reward=step.reward, terminated=terminal,
                truncated=step.truncated & ~terminal, age=seen["age"],
                **({"labels": seen["labels"]} if "labels" in seen else {}),
            )  # fmt: skip
            self.life.note(transition.action, step.reward, step.ended)
            for memory in (self.player, self.teacher):
                if memory is not None:
                    memory.reset(step.ended)
            self.life.obs = step.obs
            self.steps += config.num_envs
            self._learn_from_replay()
            self._note(time.monotonic() - started)
            done, total = self.studied + min(self.steps, config.total_steps), self.studied + config.total_steps
            progress.update(done, total, self.life.mean_return)
            if self.steps >= config.total_steps:
                return

    def _learn_from_replay(self) -> None:
        config = self.config
        assert self.replay is not None
        if self.steps < config.learning_starts or not self.replay.ready(config.n_steps):
            return
        if not self.updates and not self.kept.features:
            rng = block_generator(self.seed, "train", 4, 0, 0)
            show([self.policy], self.replay.sample(LOOKED_AT, config.n_steps, config.gamma, rng).obs)
            self._agree()
        rng = block_generator(self.seed, "train", 3, 0, self.steps)
        weight = self.weaning.weight(self.done)
        if config.schedule == "linear":
            self.optimizer.param_groups[0]["lr"] = config.learning_rate * max(1 - self.done, 0.0)
        for _ in range(config.gradient_steps):
            self.noted.append(self._step(self._drawn(rng), weight))

    def _drawn(self, rng: np.random.Generator) -> TransitionBatch:
        """A batch of all that there is, each transition as likely as another."""
        config = self.config
        assert self.replay is not None
        others = 0
        if self.taught is not None:
            others = rng.binomial(config.batch_size, len(self.taught) / (len(self.taught) + len(self.replay)))
        own = self.replay.sample(config.batch_size - others, config.n_steps, config.gamma, rng)
        return own if self.taught is None else own.concat(self.taught.sample(others, rng))

    def _step(self, drawn: TransitionBatch, weight: float) -> dict[str, Tensor]:
        """One step of the optimiser."""
        output = self.kept.action_params(self.policy, drawn.obs)
        with torch.no_grad():
            following = self.kept.action_params(self.target, drawn.next_obs).params
            chooser = self.kept.action_params(self.policy, drawn.next_obs).params if self.config.double else following
            bootstrap = following.gather(1, chooser.argmax(1, keepdim=True)).squeeze(1)
            target = drawn.reward + drawn.discount * bootstrap
        episode_actions = output.params.gather(1, drawn.action[:, None]).squeeze(1)
        per_sample = F.smooth_l1_loss(episode_actions, target, reduction="none")
        row = {
            "td_loss": per_sample.detach().mean(),
            "q_value": episode_actions.detach().mean(),
            "distillation_loss": NO_LOSS,
        }
        if weight > 0 and drawn.labels is not None:
            divergence = self._distillation(output, drawn)
            per_sample = per_sample + weight * divergence
            row["distillation_loss"] = divergence.detach().mean()
        assert self.weights.grad is not None
        self.weights.grad.zero_()
        per_sample.mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([self.weights], self.config.max_grad_norm)
        self.optimizer.step()
        if self.mean is not None:
            # Young means are short, or the weights that training began with would be most of them.
            decay = min(self.config.ema_decay, self.updates / (self.updates + 10))
            self.mean.detach().lerp_(self.weights.detach(), 1 - decay)
        self.updates += 1
        if self.updates % self.config.target_update_interval == 0:
            self.target.load_state_dict(self.policy.state_dict())
        return row

    def _take_buffers(self) -> None:
        """Weights are averaged; what a student counts beside them, as batch normalisation does, is the newest."""
        for kept, newest in zip(self.candidate.buffers(), self.policy.buffers(), strict=True):
            kept.copy_(newest)

    def _agree(self) -> None:
        """Let the other networks be as the policy is."""
        for network in self.networks.values():
            network.load_state_dict(self.policy.state_dict())

    def _distillation(self, output: PolicyOutput, drawn: TransitionBatch) -> Tensor:
        """The distillation losses, weighted and summed, `[B]`."""
        assert self.head is not None
        assert drawn.labels is not None
        if not self.gap and self.head.action_values:
            self.gap = torch.tensor(max(action_gap(drawn.labels.numpy()), 1e-6))
        teacher = PolicyOutput(self.head, drawn.labels)
        labels = Labels(teacher, teacher, drawn.action, drawn.reward, drawn.reward, drawn.discount == 0)
        terms = with_temperatures(self.guidance.losses, self.head, lambda: float(self.gap))
        return torch.stack([term.weight(self.done) * unreduced(term, output, labels) for term in terms]).sum(0)

    def _note(self, seconds: float) -> None:
        """A row of `metrics.jsonl` now and then; where it is time, the score of the policy, kept if it is the best."""
        at_end = self.steps >= self.config.total_steps
        to_score = self.score is not None and (self.steps >= self.next_eval or at_end)
        to_note = self.steps // NOTE_EVERY > (self.steps - self.config.num_envs) // NOTE_EVERY
        if self.noted and (to_note or to_score or at_end):
            recent = self.life.mean_return
            document: dict[str, Any] = {"step": self.steps, "update": self.updates, "return": recent}
            document["learning_rate"] = self.optimizer.param_groups[0]["lr"]
            document |= {name: float(torch.stack([row[name] for row in self.noted]).mean()) for name in self.noted[0]}
            document |= {"distillation_weight": self.weaning.weight(self.done), **self.guidance.ends}
            document |= self._beside_teacher()
            if to_score:
                self.next_eval += self.config.eval_every
                document |= self.scored()
            for text in self.weaning.update(self.life.recent, self.life.num_ended, self.done):
                warnings.warn(f"{self.folder}: {text}", stacklevel=2)
            self.noted = []
            self.add(document | {"seconds": round(seconds, 2)})
            self._save_now_and_then()

    def _save_now_and_then(self) -> None:
        started = time.monotonic()
        if started > self.next_save:
            save(self)
            ended = time.monotonic()
            self.next_save = ended + max(SAVE_EVERY, (ended - started) / SAVING)

    def _beside_teacher(self) -> dict[str, float]:
        """KL(teacher || student) on some of the student's states, both softened alike, however much it counts."""
        if self.head is None or self.replay is None:
            return {}
        config, rng = self.config, block_generator(self.seed, "train", 5, 0, self.steps)
        drawn = self.replay.sample(config.batch_size, config.n_steps, config.gamma, rng)
        assert drawn.labels is not None
        teacher = PolicyOutput(self.head, drawn.labels)
        soft = default_temperature(self.head, lambda: action_gap(drawn.labels.numpy()))  # type: ignore[union-attr]
        with torch.no_grad():
            return {
                "teacher_kl": float(
                    functional.kl(teacher, self.kept.action_params(self.policy, drawn.obs), soft, soft).mean()
                )
            }
