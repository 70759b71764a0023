"""DQN with or without a teacher: double, dueling, n-step, and the two phases of QDagger."""

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import MASK
from rldistill.core.policy import resolve_device, to_device
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.data.replay import ReplayBuffer, TransitionBatch
from rldistill.distillation.prepare import prepare
from rldistill.envs.atari import is_atari
from rldistill.envs.seeding import block_generator
from rldistill.envs.vector import legal_actions
from rldistill.io.atomic import Mode, open_stage
from rldistill.io.lock import locked
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.layers import flatten_weights
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import DQNConfig
from rldistill.rl.replay import OfflineTransitions, ReplayObsEncoder
from rldistill.rl.rollout import RolloutWorker, mean_terms
from rldistill.rl.train_state import Learner, LearningTask, fit_normalization
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native, trust_student
from rldistill.students.student import build_student, capability

LOG_INTERVAL_STEPS = 2_000
"""Environment steps between rows of `metrics.jsonl`."""
NORMALIZATION_SAMPLES = 1_000
"""Observations to which the normalization of pixels is fitted, without a dataset."""


@locked
def learn(
    task: LearningTask,
    config: DQNConfig,
    *,
    dataset: Dataset | None = None,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> NetworkPolicy:
    """Train a student's Q values on reward, and on the distillation losses of its guidance.

    The loss is `dqn_loss` + lambda D, D the distillation losses and lambda their weight. With a dataset, the loss is
    first minimized on the teacher's one-step transitions (QDagger, Agarwal 2022, arXiv 2206.01626), and later on these
    and the student's own together, all with the same probability, so that the student does not forget states that it
    has not visited yet.

    Raises:
        ConfigError: the student does not learn by gradient, or it is recurrent.
        SpecMismatchError: an action is not one integer; or teacher, student and environment do not fit.
    """
    trust_student(task.student)
    if open_stage(task.folder, task.folder / "policy.json", mode):
        return load_native(task.folder)
    device = resolve_device(config.device, "dqn.device")
    with stage_progress(progress, "learn", "steps") as report, task.open(config, device) as worker:
        learner = DQNLearner(task, config, worker, dataset)
        learner.restore()
        if dataset is not None and learner.progress < 1:
            learner.learn_offline(dataset, report)
        if learner.offline_updates:
            learner.log_start(learner.newest_candidate())
        terms = list[dict[str, Tensor]]()
        while learner.progress < 1:
            # Collect one step of every environment.
            learner.collect()
            learner.steps += config.num_envs

            # Update.
            terms += learner.update()
            finished = learner.offline_updates + min(learner.steps, config.total_steps)
            report.update(finished, learner.offline_updates + config.total_steps, worker.mean_return)

            # Evaluate, log and checkpoint: here alone, where no loss waits for its row.
            log_due = learner.steps % LOG_INTERVAL_STEPS < config.num_envs or learner.progress >= 1
            if terms and (log_due or learner.eval_due):
                learner.log(learner.newest_candidate(), learner.metrics(terms))
                terms = []
                learner.update_weight()
                learner.save_if_due()
        policy = learner.newest_candidate() if task.score is None else learner.networks["best"]
        if isinstance(policy.output, DuelingLayer):
            policy.output = policy.output.to_linear()
        return task.save(policy, learner.steps)


def dqn_loss(
    q_value: Tensor, batch: TransitionBatch, next_q_values: Tensor, selection_q_values: Tensor | None = None
) -> Tensor:
    """Return h(Q(s, a) - R - gamma^n Q_target(s', a')) of each transition, `[B]`, h the Huber loss (Mnih 2015).

    Args:
        q_value: Q values of the learning network for the observations and the actions taken, `[B]`.
        batch: transitions.
        next_q_values: Q values of the target network for the next observations, `[B, A]`.
        selection_q_values: Q values that select a' (double DQN, van Hasselt 2015, arXiv 1509.06461); by default those
            of the target network.
    """
    selection = next_q_values if selection_q_values is None else selection_q_values
    next_value = next_q_values.gather(1, selection.argmax(1, keepdim=True)).squeeze(1)
    target = (batch.reward + batch.discount * next_value).detach()
    return F.smooth_l1_loss(q_value, target, reduction="none")


class DQNLearner(Learner):
    """Networks, optimizer and replay of a run of DQN."""

    config: DQNConfig
    replay: ReplayBuffer

    def __init__(self, task: LearningTask, config: DQNConfig, worker: RolloutWorker, dataset: Dataset | None) -> None:
        self.policy = new_policy(task.student, worker.views.student, config)
        if dataset is not None:
            prepare(self.policy, dataset)
        self.policy.to(worker.device)
        self.target = copy.deepcopy(self.policy)
        # The network that is evaluated and kept.
        self.candidate = copy.deepcopy(self.policy) if config.ema_decay else self.policy
        self.encoder = ReplayObsEncoder(self.policy, dataset, worker.device)
        self.offline: OfflineTransitions | None = None
        num_labels = 0 if worker.teacher is None else worker.teacher.policy.spec.head.num_params
        self.weights = flatten_weights(self.policy)
        self.average_weights = flatten_weights(self.candidate) if config.ema_decay else None
        networks = {"policy": self.policy, "target": self.target}
        networks |= {"average": self.candidate} if config.ema_decay else {}
        optimizer = torch.optim.Adam([self.weights], config.learning_rate, eps=1.5e-4, fused=True)
        replay = ReplayBuffer(
            self.encoder.spec, config.buffer_size, config.num_envs, config.n_steps, config.gamma, num_labels
        )
        super().__init__(task, config, worker, networks, optimizer, replay)

    def learn_offline(self, dataset: Dataset, progress: Progress) -> None:
        """Learn from the teacher's dataset, with the first weight of the distillation losses."""
        config = self.config
        self.offline = OfflineTransitions(dataset, self.encoder, config, is_atari(self.worker.env.id))
        weight = self.task.guidance.weight(0.0) if self.task.guidance.losses else 0.0
        while self.offline_updates < config.offline_steps:
            rng = block_generator(self.task.seed, "train", 2, 0, self.offline_updates)
            self._step(self.offline.sample(config.batch_size, rng), weight)
            self.offline_updates += 1
            self.save_if_due()
            progress.update(self.offline_updates, config.offline_steps + config.total_steps)

    def collect(self) -> None:
        """Take one epsilon-greedy step in every environment and store it."""
        worker, teacher = self.worker, self.worker.teacher
        spec = worker.views.student
        rng = block_generator(self.task.seed, "train", 1, 0, self.steps)
        greedy = self.student.step(worker.obs).mode().numpy()
        obs, age = worker.student_obs(worker.obs), worker.age
        labels = {} if teacher is None else {"labels": teacher.step(worker.obs).params.numpy()}
        random = rng.integers(0, spec.head.nvec[0], len(age))
        if MASK in spec.entries:
            random = legal_actions(obs.numpy(), spec, rng)
        explores = rng.random(len(age)) < self.config.epsilon_schedule(self.progress)
        action = np.where(explores, random, greedy)
        stored = self.encoder.encode(obs)  # before the step, after which `obs` may be overwritten
        step = worker.step(action)
        last = self.encoder.encode(worker.student_obs(step.last_obs)) if len(step.ended) else step.last_obs
        terminated = step.terminated | (step.reward != 0) & self.config.terminal_on_reward
        self.replay.add(
            stored,
            {int(slot): last[i] for i, slot in enumerate(step.ended) if not step.terminated[slot]},
            action=action,
            reward=step.reward,
            terminated=terminated,
            truncated=step.truncated & ~terminated,
            age=age,
            **labels,
        )
        for actor in self.actors.values():
            actor.reset(step.ended)

    def update(self) -> list[dict[str, Tensor]]:
        """Make the gradient steps of one environment step, if there is enough data; return their loss terms."""
        config = self.config
        if self.steps < config.learning_starts or self.replay.num_added < self.replay.min_steps:
            return []
        if self.offline is None and not self.updates:
            rng = block_generator(self.task.seed, "train", 4, 0, 0)
            sample = self.replay.sample(NORMALIZATION_SAMPLES, rng)
            fit_normalization([self.policy], sample.obs.to(self.worker.device))
            for network in (self.target, self.candidate):
                network.load_state_dict(self.policy.state_dict())
        if config.schedule == "linear":
            self.optimizer.param_groups[0]["lr"] = config.learning_rate * max(1 - self.progress, 0.0)
        rng = block_generator(self.task.seed, "train", 3, 0, self.steps)
        weight = self.weight.weight(self.progress)
        terms = []
        for _ in range(config.gradient_steps):
            num_offline = 0
            if self.offline is not None:  # all transitions of dataset and replay have the same probability
                share = len(self.offline) / (len(self.offline) + len(self.replay))
                num_offline = rng.binomial(config.batch_size, share)
            batch = self.replay.sample(config.batch_size - num_offline, rng)
            if self.offline is not None:
                batch = batch.concat(self.offline.sample(num_offline, rng))
            terms.append(self._step(batch, weight))
        return terms

    def _step(self, batch: TransitionBatch, weight: float) -> dict[str, Tensor]:
        """Make one step of the optimizer; return the means of the loss terms."""
        config, teacher_loss, q_values = self.config, self.teacher_loss, self.encoder.q_values
        batch = to_device(batch, self.worker.device)
        output = q_values(self.policy, batch.obs)
        with torch.no_grad():
            next_q_values = q_values(self.target, batch.next_obs).params
            selection = q_values(self.policy, batch.next_obs).params if config.double else None
        q_value = output.params.gather(1, batch.action[:, None]).squeeze(1)
        loss = dqn_loss(q_value, batch, next_q_values, selection)
        row = {"td_loss": loss.detach().mean(), "q_value": q_value.detach().mean(), "distillation_loss": self.no_loss}
        if teacher_loss is not None and batch.labels is not None:
            teacher_loss.measure(batch.labels)
            if weight > 0:
                distillation = teacher_loss(output, batch.to_labels(teacher_loss.head), self.progress)
                loss = loss + weight * distillation
                row["distillation_loss"] = distillation.detach().mean()
        assert self.weights.grad is not None
        self.weights.grad.zero_()
        loss.mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([self.weights], config.max_grad_norm)
        self.optimizer.step()
        if self.average_weights is not None:
            # Young averages are short, or the first weights would be most of them.
            decay = min(config.ema_decay, self.updates / (self.updates + 10))
            self.average_weights.detach().lerp_(self.weights.detach(), 1 - decay)
        self.updates += 1
        if self.updates % config.target_update_interval == 0:
            self.target.load_state_dict(self.policy.state_dict())
        return row

    def metrics(self, terms: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Return the means of the loss terms, the learning rate, and the divergence from the teacher."""
        row: dict[str, Any] = {"learning_rate": self.optimizer.param_groups[0]["lr"]}
        row |= mean_terms(terms)
        row["distillation_weight"] = self.weight.weight(self.progress)
        if self.teacher_loss is not None:
            rng = block_generator(self.task.seed, "train", 5, 0, self.steps)
            batch = to_device(self.replay.sample(self.config.batch_size, rng), self.worker.device)
            assert batch.labels is not None
            with torch.no_grad():
                row |= self.teacher_loss.kl(self.encoder.q_values(self.policy, batch.obs), batch.labels)
        return row

    def newest_candidate(self) -> NetworkPolicy:
        """Return the network to evaluate, with the latest buffers of batch normalization: only weights are averaged."""
        for buffer, newest in zip(self.candidate.buffers(), self.policy.buffers(), strict=True):
            buffer.copy_(newest)
        return self.candidate


class DuelingLayer(nn.Module):
    """Last layer Q(s, a) = V(s) + A(s, a) - mean_a A(s, a) (Wang 2016, arXiv 1511.06581)."""

    def __init__(self, width: int, num_actions: int) -> None:
        super().__init__()
        self.value, self.advantage = nn.Linear(width, 1), nn.Linear(width, num_actions)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the Q values `[B, num_actions]` of the last hidden layer `[B, width]`."""
        advantage: Tensor = self.advantage(hidden)
        q_values: Tensor = self.value(hidden) + advantage - advantage.mean(-1, keepdim=True)
        return q_values

    def to_linear(self) -> nn.Linear:
        """Return the same function as one linear layer, in which students are stored."""
        linear = nn.Linear(self.advantage.in_features, self.advantage.out_features)
        with torch.no_grad():
            for name in ("weight", "bias"):
                advantage, value = getattr(self.advantage, name), getattr(self.value, name)
                getattr(linear, name).copy_(value + advantage - advantage.mean(0, keepdim=True))
        return linear


def new_policy(student: AnyStudent, env: PolicySpec, config: DQNConfig) -> NetworkPolicy:
    """Return a new student that learns by DQN in an environment with the spec `env`.

    Raises:
        ConfigError: the student does not learn by gradient, or it is recurrent.
        SpecMismatchError: an action is not one integer.
    """
    if not env.head.single_choice:
        raise SpecMismatchError(
            f"recipe: DQN learns the values of one choice among actions, and these are {env.head.kind}. Use a recipe "
            "that learns by PPO."
        )
    policy = build_student(student, dataclasses.replace(env, head=env.head.as_kind("q_values")))
    if not capability(student, "trains_from_reward") or not isinstance(policy.output, nn.Linear):
        raise ConfigError(
            f"students: a {type(student).__name__.lower()} student does not learn by gradient, which learning from "
            "reward needs. Use linear, mlp, cnn or impala."
        )
    if policy.recurrent:
        raise ConfigError("students: DQN does not train recurrent students such as gru. Use a recipe of PPO.")
    if config.dueling:
        policy.output = DuelingLayer(policy.output.in_features, policy.output.out_features)
    return policy
