"""DQN with or without a teacher: double, dueling, n-step, and the two phases of QDagger."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import MASK
from rldistill.core.policy import resolve_device
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.data.replay import ReplayBuffer, TransitionBatch
from rldistill.distillation.prepare import prepare
from rldistill.envs.atari import is_atari
from rldistill.envs.seeding import block_generator
from rldistill.envs.vector import legal_actions
from rldistill.io.atomic import Mode, open_stage
from rldistill.io.progress import Progress, stage_progress
from rldistill.policies.layers import flatten_weights
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import DQNConfig
from rldistill.rl.replay import OfflineTransitions, ReplayObsEncoder
from rldistill.rl.task import LearningTask, TrainingSetup, fit_normalization
from rldistill.rl.train_state import TrainState
from rldistill.students import AnyStudent
from rldistill.students.storage import load_native, trust_student
from rldistill.students.student import build_student, capability

LOG_INTERVAL_STEPS = 2_000
"""Environment steps between rows of `metrics.jsonl`."""
NORMALIZATION_SAMPLES = 1_000
"""Observations to which the normalization of pixels is fitted, without a dataset."""


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
    with stage_progress(progress, "learn", "steps") as report, task.open(config, device) as setup:
        learner = _Learner(task, config, setup, dataset)
        learner.state.restore()
        if dataset is not None and learner.state.progress < 1:
            is_clipped = is_atari(setup.worker.env.id)
            learner.offline = OfflineTransitions(dataset, learner.encoder, config, is_clipped)
            learner.learn_offline(report)
        return _train(learner, report)


def _train(learner: _Learner, report: Progress) -> NetworkPolicy:
    """Run the training loop on the student's own steps."""
    config, state, worker = learner.config, learner.state, learner.setup.worker
    if state.offline_updates:
        state.log_start(learner.newest_candidate())
    terms = list[dict[str, Tensor]]()
    while state.progress < 1:
        # Collect one step of every environment.
        learner.collect()
        state.steps += config.num_envs

        # Update.
        terms += learner.update()
        finished = state.offline_updates + min(state.steps, config.total_steps)
        report.update(finished, state.offline_updates + config.total_steps, worker.mean_return)

        # Evaluate, log and checkpoint: here alone, where no loss waits for its row.
        log_due = state.steps % LOG_INTERVAL_STEPS < config.num_envs or state.progress >= 1
        if terms and (log_due or state.eval_due):
            state.log(learner.newest_candidate(), learner.metrics(terms))
            terms = []
            state.update_weight()
            state.save_if_due()
    policy = learner.newest_candidate() if learner.task.score is None else state.networks["best"]
    if isinstance(policy.output, DuelingLayer):
        policy.output = policy.output.to_linear()
    return learner.task.save(policy, state.steps)


@dataclass(frozen=True)
class DQNLoss:
    """Terms of DQN's loss, `[B]`.

    Attributes:
        td: Huber loss of the temporal-difference error.
        q_value: Q value of the action taken.
    """

    td: Tensor
    q_value: Tensor


def dqn_loss(
    q_values: Tensor, batch: TransitionBatch, next_q_values: Tensor, selection_q_values: Tensor | None = None
) -> DQNLoss:
    """Return the loss h(Q(s, a) - R - gamma^n Q_target(s', a')) of each transition, h the Huber loss (Mnih 2015).

    Args:
        q_values: Q values of the learning network for the observations, `[B, A]`.
        batch: transitions.
        next_q_values: Q values of the target network for the next observations, `[B, A]`.
        selection_q_values: Q values that select a' (double DQN, van Hasselt 2015, arXiv 1509.06461); by default those
            of the target network.
    """
    selection = next_q_values if selection_q_values is None else selection_q_values
    next_value = next_q_values.gather(1, selection.argmax(1, keepdim=True)).squeeze(1)
    q_value = q_values.gather(1, batch.action[:, None]).squeeze(1)
    target = (batch.reward + batch.discount * next_value).detach()
    return DQNLoss(F.smooth_l1_loss(q_value, target, reduction="none"), q_value.detach())


class _Learner:
    """Networks, optimizer and replay of a run of DQN."""

    def __init__(self, task: LearningTask, config: DQNConfig, setup: TrainingSetup, dataset: Dataset | None) -> None:
        self.task, self.config, self.setup = task, config, setup
        self.policy = new_policy(task.student, setup.worker.views.student, config)
        if dataset is not None:
            prepare(self.policy, dataset)
        self.policy.to(setup.device)
        self.target = copy.deepcopy(self.policy)
        # The network that is evaluated and kept.
        self.candidate = copy.deepcopy(self.policy) if config.ema_decay else self.policy
        self.encoder = ReplayObsEncoder(self.policy, dataset, setup.device)
        self.needs_fit = dataset is None
        self.offline: OfflineTransitions | None = None
        num_labels = 0 if setup.teacher_loss is None else setup.teacher_loss.head.num_params
        self.replay = ReplayBuffer(
            self.encoder.spec, config.buffer_size, config.num_envs, config.n_steps, config.gamma, num_labels
        )
        self.no_loss = torch.zeros((), device=setup.device)
        self.weights = flatten_weights(self.policy)
        self.average_weights = flatten_weights(self.candidate) if config.ema_decay else None
        networks = {"policy": self.policy, "target": self.target}
        networks |= {"average": self.candidate} if config.ema_decay else {}
        optimizer = torch.optim.Adam([self.weights], config.learning_rate, eps=1.5e-4, fused=True)
        self.state = TrainState(task, config, setup, networks, optimizer, self.replay)

    def learn_offline(self, progress: Progress) -> None:
        """Learn from the teacher's dataset, with the first weight of the distillation losses."""
        config, state = self.config, self.state
        assert self.offline is not None
        weight = self.task.guidance.weight(0.0) if self.task.guidance.losses else 0.0
        while state.offline_updates < config.offline_steps:
            rng = block_generator(self.task.seed, "train", 2, 0, state.offline_updates)
            self._step(self.offline.sample(config.batch_size, rng), weight)
            state.offline_updates += 1
            state.save_if_due()
            progress.update(state.offline_updates, config.offline_steps + config.total_steps)

    def collect(self) -> None:
        """Take one epsilon-greedy step in every environment and store it."""
        worker, teacher = self.setup.worker, self.setup.teacher
        spec = worker.views.student
        rng = block_generator(self.task.seed, "train", 1, 0, self.state.steps)
        greedy = self.state.student.step(worker.obs).mode().numpy()
        obs, age = worker.student_obs(worker.obs), worker.age
        labels = {} if teacher is None else {"labels": teacher.step(worker.obs).params.numpy()}
        random = rng.integers(0, spec.head.nvec[0], len(age))
        if MASK in spec.entries:
            random = legal_actions(obs.numpy(), spec, rng)
        explores = rng.random(len(age)) < self.config.epsilon_schedule(self.state.progress)
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
        for actor in self.state.actors.values():
            actor.reset(step.ended)

    def update(self) -> list[dict[str, Tensor]]:
        """Make the gradient steps of one environment step, if there is enough data; return their loss terms."""
        config, state = self.config, self.state
        if state.steps < config.learning_starts or self.replay.num_added < self.replay.min_steps:
            return []
        if self.needs_fit and not state.updates:
            rng = block_generator(self.task.seed, "train", 4, 0, 0)
            sample = self.replay.sample(NORMALIZATION_SAMPLES, rng)
            fit_normalization([self.policy], sample.obs.to(self.setup.device))
            for network in (self.target, self.candidate):
                network.load_state_dict(self.policy.state_dict())
        if config.schedule == "linear":
            state.optimizer.param_groups[0]["lr"] = config.learning_rate * max(1 - state.progress, 0.0)
        rng = block_generator(self.task.seed, "train", 3, 0, state.steps)
        weight = state.weight.weight(state.progress)
        return [self._step(self._sample(rng), weight) for _ in range(config.gradient_steps)]

    def _sample(self, rng: np.random.Generator) -> TransitionBatch:
        """Return a batch of the dataset and the replay together, all transitions with the same probability."""
        config, num_offline = self.config, 0
        if self.offline is not None:
            share = len(self.offline) / (len(self.offline) + len(self.replay))
            num_offline = rng.binomial(config.batch_size, share)
        own = self.replay.sample(config.batch_size - num_offline, rng)
        return own if self.offline is None else own.concat(self.offline.sample(num_offline, rng))

    def _step(self, batch: TransitionBatch, weight: float) -> dict[str, Tensor]:
        """Make one step of the optimizer; return the means of the loss terms."""
        config, state, teacher_loss = self.config, self.state, self.setup.teacher_loss
        q_values = self.encoder.q_values
        batch = batch.to(self.setup.device)
        output = q_values(self.policy, batch.obs)
        with torch.no_grad():
            next_q_values = q_values(self.target, batch.next_obs).params
            selection = q_values(self.policy, batch.next_obs).params if config.double else None
        terms = dqn_loss(output.params, batch, next_q_values, selection)
        loss = terms.td
        row = {"td_loss": loss.detach().mean(), "q_value": terms.q_value.mean(), "distillation_loss": self.no_loss}
        if teacher_loss is not None and batch.labels is not None:
            teacher_loss.measure(batch.labels)
            if weight > 0:
                distillation = teacher_loss(output, batch.to_labels(teacher_loss.head), state.progress)
                loss = loss + weight * distillation
                row["distillation_loss"] = distillation.detach().mean()
        assert self.weights.grad is not None
        self.weights.grad.zero_()
        loss.mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([self.weights], config.max_grad_norm)
        state.optimizer.step()
        if self.average_weights is not None:
            # Young averages are short, or the first weights would be most of them.
            decay = min(config.ema_decay, state.updates / (state.updates + 10))
            self.average_weights.detach().lerp_(self.weights.detach(), 1 - decay)
        state.updates += 1
        if state.updates % config.target_update_interval == 0:
            self.target.load_state_dict(self.policy.state_dict())
        return row

    def metrics(self, terms: list[dict[str, Tensor]]) -> dict[str, Any]:
        """Return the means of the loss terms, the learning rate, and the divergence from the teacher."""
        row: dict[str, Any] = {"learning_rate": self.state.optimizer.param_groups[0]["lr"]}
        row |= {name: float(torch.stack([term[name] for term in terms]).mean()) for name in terms[0]}
        row["distillation_weight"] = self.state.weight.weight(self.state.progress)
        if self.setup.teacher_loss is not None:
            rng = block_generator(self.task.seed, "train", 5, 0, self.state.steps)
            batch = self.replay.sample(self.config.batch_size, rng).to(self.setup.device)
            assert batch.labels is not None
            with torch.no_grad():
                row |= self.setup.teacher_loss.kl(self.encoder.q_values(self.policy, batch.obs), batch.labels)
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
