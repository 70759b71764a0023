"""PPO with or without a teacher: the learner of every recipe that learns from reward, except qdagger."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import ActionHead, DeterministicHead
from rldistill.core.policy import PolicyOutput, resolve_device, to_device
from rldistill.core.spec import PolicySpec
from rldistill.envs.seeding import block_generator
from rldistill.io.atomic import Mode, open_stage
from rldistill.io.lock import locked
from rldistill.io.progress import Progress, stage_progress
from rldistill.losses.objective import Term, student_spec
from rldistill.losses.policy import detached
from rldistill.policies.layers import flatten_weights
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import PPOConfig
from rldistill.rl.guidance import TeacherLoss, proximal_weight
from rldistill.rl.rollout import Minibatch, Rollout, RolloutWorker, Steps, advantages, mean_terms
from rldistill.rl.train_state import Learner, LearningTask, fit_normalization
from rldistill.students import AnyStudent, Mlp, Team
from rldistill.students.multi_input import picture_network
from rldistill.students.storage import load_native, trust_student
from rldistill.students.student import build_student, capability


@locked
def learn(
    task: LearningTask,
    config: PPOConfig,
    *,
    initial: NetworkPolicy | None = None,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> NetworkPolicy:
    """Train a student by PPO on reward, and on the distillation losses of its guidance.

    The loss is `ppo_loss` + lambda D, D the distillation losses and lambda their weight. Without a teacher, or with
    lambda 0, it is PPO. Training starts with the weights of `initial` if it is given.

    Raises:
        ConfigError: the student does not learn by gradient, or there is guidance without a teacher.
        SpecMismatchError: teacher, student and environment do not fit.
    """
    trust_student(task.student)
    if open_stage(task.folder, task.folder / "policy.json", mode):
        return load_native(task.folder)
    device = resolve_device(config.device, "ppo.device")
    with stage_progress(progress, "learn", "steps") as report, task.open(config, device) as worker:
        learner = PPOLearner(task, config, worker, initial)
        learner.restore()
        if initial is not None:
            learner.log_start(learner.policy)
        while learner.progress < 1:
            learner.learn(*learner.collect())
            report.update(min(learner.steps, config.total_steps), config.total_steps, worker.mean_return)
            learner.save_if_due()
        return task.save(learner.result, learner.steps)


def ppo_loss(ratio: Tensor, entropy: Tensor, value: Tensor, batch: Minibatch, clip_range: float) -> dict[str, Tensor]:
    """Return the scalar terms of PPO's loss by their names in the metrics (Schulman 2017, arXiv 1707.06347).

    policy_loss = -E[min(r A, clip(r, 1 - c, 1 + c) A)] with normalized advantages A, and value_loss = E[(V - R)^2].
    clip_fraction is the share of the ratios that are clipped. Steps of the teacher have weight 0 in policy_loss and
    entropy.

    Args:
        ratio: r = pi(a | s) / pi_old(a | s) of the actions in the batch, `[B]` or `[T, B]` as all tensors.
        entropy: entropy of the policy in each state.
        value: value of the critic for each state.
        batch: actions with their advantages, returns and weights.
        clip_range: c.
    """
    advantage = batch.normalized_advantage()
    surrogate = torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)
    return {
        "policy_loss": -batch.mean(surrogate),
        "value_loss": F.mse_loss(value, batch.returns),
        "entropy": batch.mean(entropy),
        "clip_fraction": ((ratio.detach() - 1).abs() > clip_range).float().mean(),
    }


class PPOLearner(Learner):
    """Policy, critic and optimizer of a run of PPO."""

    config: PPOConfig

    def __init__(
        self, task: LearningTask, config: PPOConfig, worker: RolloutWorker, initial: NetworkPolicy | None
    ) -> None:
        head = task.head or (None if task.teacher is None else task.teacher.spec.head)
        self.policy = new_policy(task.student, worker.views.student, head, task.guidance.losses)
        spec = self.policy.spec
        student = config.critic or picture_network(spec) or Mlp((64, 64), "tanh")
        if not capability(student, "trains_from_reward"):
            name = type(student).__name__.lower()
            raise ConfigError(f"ppo.critic: a {name} does not learn by gradient. Use mlp or cnn.")
        self.critic = student.build(dataclasses.replace(spec, head=DeterministicHead(low=(-np.inf,), high=(np.inf,))))
        if self.critic.recurrent:
            raise ConfigError("ppo.critic: expected a feed-forward network, such as mlp or cnn.")
        self.unfitted = [self.policy, self.critic]
        if initial is not None:
            self.policy.load_state_dict({**self.policy.state_dict(), **initial.state_dict()})
            self.unfitted = [self.critic]
            if not initial.normalizes_itself and self.critic.obs_mean.shape == self.policy.obs_mean.shape:
                self.critic.standardize(self.policy.obs_mean, self.policy.obs_std)
                self.unfitted = []
        # Two parameters, since Adam counts steps: the policy's first step comes after the warm-up of the critic.
        self.policy_weights = flatten_weights(self.policy.to(worker.device))
        self.critic_weights = flatten_weights(self.critic.to(worker.device))
        parameters = [self.policy_weights, self.critic_weights]
        optimizer = torch.optim.Adam(parameters, config.learning_rate, eps=1e-5, fused=True)
        super().__init__(task, config, worker, {"policy": self.policy, "critic": self.critic}, optimizer)
        if task.guidance.alpha is not None:
            self.teacher_loss = TeacherLoss(task.guidance.losses, self.policy.spec.head, "peer_kl")

    @property
    def result(self) -> NetworkPolicy:
        """The best policy by its scores; the last one if it has none."""
        return self.policy if self.task.score is None else self.networks["best"]

    def collect(self) -> tuple[Rollout, np.random.Generator]:
        """Return the next rollout, and the generator of its update."""
        rng = block_generator(self.task.seed, "train", 0, 0, self.updates)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        num_teacher_steps = self.task.guidance.num_teacher_steps(self.progress)
        rollout = self.worker.collect(self.student, self.config.rollout_length, num_teacher_steps, generator)
        return to_device(rollout, self.worker.device), rng

    def learn(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, Any]:
        """Learn from a rollout, and log it; return the row of `metrics.jsonl`."""
        row = dict[str, float]()
        if self.task.reward is not None:
            reward, row = self.task.reward.rewards(rollout, self.policy, rng)
            rollout = dataclasses.replace(rollout, reward=reward)
        terms = self.update(rollout, rng) | row
        self.steps += self.config.num_envs * self.config.rollout_length
        self.updates += 1
        if self.steps > self.config.critic_warmup:  # until then the policy is frozen, so its return means nothing
            self.update_weight()
        return self.log(self.policy, terms)

    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        """Learn from a rollout for some epochs; return the means of the loss terms."""
        config, teacher_loss = self.config, self.teacher_loss
        if config.schedule == "linear":
            self.optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - self.progress)
        if not self.updates:
            fit_normalization(self.unfitted, rollout.obs.flatten(0, 1))
        with torch.no_grad():
            value = self.value(rollout.obs.flatten(0, 1)).view(rollout.reward.shape)
            next_value = torch.cat([value[1:], self.value(rollout.next_obs)[None]])
            if rollout.last_obs:
                steps, slots = zip(*rollout.last_obs, strict=True)
                last_obs = torch.stack([*rollout.last_obs.values()]).to(self.worker.device)
                next_value[list(steps), list(slots)] = self.value(last_obs)
        advantage = advantages(rollout, value, next_value, config.gamma, config.gae_lambda)
        returns = advantage + value
        output = PolicyOutput(self.policy.spec.head, rollout.action_params)
        weight = self.weight.weight(self.progress)
        row = {"explained_variance": 1 - float(advantage.var() / returns.var()) if returns.var() > 0 else 0.0}
        row["distillation_weight"] = weight
        if teacher_loss is not None and rollout.labels is not None:
            teacher_loss.measure(rollout.labels)
            row |= teacher_loss.kl(output, rollout.labels)
        old_log_prob = output.log_prob(rollout.raw_action)
        columns = {field.name: getattr(rollout, field.name) for field in dataclasses.fields(Steps)}
        whole = Minibatch(**columns, old_log_prob=old_log_prob, advantage=advantage, returns=returns)
        terms = [
            self._step(batch, weight)
            for _ in range(config.epochs)
            for batch in whole.split(config.batch_size, self.policy.recurrent, rng)
        ]
        return mean_terms(terms) | row

    def _step(self, batch: Minibatch, weight: float) -> dict[str, Tensor]:
        """Make one step of the optimizer; return the loss terms."""
        config, teacher_loss = self.config, self.teacher_loss
        if self.policy.recurrent:
            assert batch.state is not None
            output = self.policy.unroll(batch.obs, batch.starts, batch.state)[0]
        else:
            output = self.policy(batch.obs)[0]
        entropy = (output if config.entropy_coef else detached(output)).entropy()
        value = self.value(batch.obs.flatten(0, batch.returns.ndim - 1)).view_as(batch.returns)
        ratio = (output.log_prob(batch.raw_action) - batch.old_log_prob).exp()
        terms = ppo_loss(ratio, entropy, value, batch, config.clip_range)
        row = {name: term.detach() for name, term in terms.items()} | {"distillation_loss": self.no_loss}
        critic_only = self.steps < config.critic_warmup
        loss = config.value_coef * terms["value_loss"]
        if not critic_only:
            loss = loss + terms["policy_loss"]
            if config.entropy_coef:
                loss = loss - config.entropy_coef * terms["entropy"]
            if weight > 0 and teacher_loss is not None:
                divergence = teacher_loss(output, batch.to_labels(teacher_loss.head), self.progress)
                if batch.confidence is not None:
                    divergence = batch.confidence * divergence
                if self.task.guidance.proximal:
                    divergence = proximal_weight(ratio, config.clip_range) * divergence
                distillation = divergence.mean()
                loss = loss + weight * distillation
                row["distillation_loss"] = distillation.detach()
        policy_gradient = self.policy_weights.grad
        for gradient in (policy_gradient, self.critic_weights.grad):
            assert gradient is not None
            gradient.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        weights = [self.critic_weights] if critic_only else [self.policy_weights, self.critic_weights]
        nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        if critic_only:
            self.policy_weights.grad = None  # Adam skips it then, and does not count a step
        self.optimizer.step()
        self.policy_weights.grad = policy_gradient
        return row

    def value(self, obs: Tensor) -> Tensor:
        """Return the values of observations `[B, ...]`, `[B]`."""
        # Without the action mask, which rules out parameters of illegal actions: a value is no action.
        return self.critic.outputs(self.critic.hidden(obs)).params.squeeze(-1)


def new_policy(
    student: AnyStudent, env: PolicySpec, head: ActionHead | None, losses: tuple[Term, ...]
) -> NetworkPolicy:
    """Return a new student that learns by PPO in an environment, with a head of the kind of `head` if it is given.

    Raises:
        ConfigError: the student does not learn by gradient.
        SpecMismatchError: a loss compares Q values.
    """
    head = head or env.head
    if not (head.discrete or head.stochastic):
        head = head.as_kind("gaussian")
    spec = student_spec(dataclasses.replace(env, head=head), losses)
    if spec.head.action_values:
        raise SpecMismatchError("distill.losses: a student of PPO has no Q values. Use losses on the policy.")
    policy = build_student(student, spec)
    if not capability(student, "trains_from_reward"):
        family = student.student if isinstance(student, Team) else student
        raise ConfigError(
            f"students: a {type(family).__name__.lower()} student does not learn by gradient, which learning from "
            "reward needs. Use linear, mlp, cnn, impala or gru."
        )
    if not policy.recurrent and isinstance(policy.output, nn.Linear):
        # All actions are about equally likely at first (Andrychowicz 2021, arXiv 2006.05990).
        with torch.no_grad():
            policy.output.weight.mul_(0.01)
    return policy
