"""PPO with or without a teacher: the learner of every recipe that learns from reward, except qdagger."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import ActionHead, DeterministicHead
from rldistill.core.policy import PolicyOutput, resolve_device
from rldistill.core.spec import PolicySpec
from rldistill.envs.seeding import block_generator
from rldistill.io.atomic import Mode, open_stage
from rldistill.io.progress import Progress, stage_progress
from rldistill.losses import functional
from rldistill.losses.objective import Term, student_spec
from rldistill.policies.layers import flatten_weights
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import PPOConfig
from rldistill.rl.guidance import proximal_weight
from rldistill.rl.rollout import Minibatch, Rollout, advantages
from rldistill.rl.task import LearningTask, TrainingSetup, fit_normalization
from rldistill.rl.train_state import TrainState
from rldistill.students import AnyStudent, Cnn, Mlp
from rldistill.students.storage import load_native, trust_student
from rldistill.students.student import build_student, capability


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
    with stage_progress(progress, "learn", "steps") as report, task.open(config, device) as setup:
        return _train(_Learner(task, config, setup, initial), report)


def _train(learner: _Learner, report: Progress) -> NetworkPolicy:
    """Run the training loop."""
    task, config, setup, state = learner.task, learner.config, learner.setup, learner.state
    state.restore()
    if learner.is_pretrained:
        state.log_start(learner.policy)
    while state.progress < 1:
        rng = block_generator(task.seed, "train", 0, 0, state.updates)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))

        # Collect.
        num_teacher_steps = task.guidance.num_teacher_steps(state.progress)
        rollout = setup.worker.collect(
            state.student, setup.teacher, config.rollout_length, num_teacher_steps, generator
        )

        # Update.
        terms = learner.update(rollout.to(setup.device), rng)
        state.steps += config.num_envs * config.rollout_length
        state.updates += 1
        if state.steps > config.critic_warmup:  # until then the policy is frozen, so its return means nothing
            state.update_weight()

        # Evaluate, log and checkpoint.
        state.log(learner.policy, terms)
        report.update(min(state.steps, config.total_steps), config.total_steps, setup.worker.mean_return)
        state.save_if_due()
    return task.save(learner.policy if task.score is None else state.networks["best"], state.steps)


@dataclass(frozen=True)
class PPOLoss:
    """Terms of PPO's loss; scalars, except the probability ratio of each action.

    Attributes:
        policy: negative clipped surrogate objective.
        value: mean squared error of the critic.
        entropy: mean entropy of the policy.
        ratio: pi(a | s) / pi_old(a | s).
        clip_fraction: share of the ratios outside the clipping range.
    """

    policy: Tensor
    value: Tensor
    entropy: Tensor
    ratio: Tensor
    clip_fraction: Tensor


def ppo_loss(log_prob: Tensor, entropy: Tensor, value: Tensor, batch: Minibatch, clip_range: float) -> PPOLoss:
    """Return the terms of PPO's loss (Schulman 2017, arXiv 1707.06347).

    policy = -E[min(r A, clip(r, 1 - c, 1 + c) A)] with normalized advantages A, and value = E[(V - R)^2]. Steps of the
    teacher have weight 0 in `policy` and `entropy`.

    Args:
        log_prob: log pi(a | s) of the actions in the batch, `[B]` or `[T, B]` as all tensors.
        entropy: entropy of the policy in each state.
        value: value of the critic for each state.
        batch: actions with their old log-probabilities, advantages, returns and weights.
        clip_range: c.
    """
    ratio = (log_prob - batch.old_log_prob).exp()
    advantage = batch.normalized_advantage()
    surrogate = torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)
    return PPOLoss(
        policy=-batch.mean(surrogate),
        value=F.mse_loss(value, batch.returns),
        entropy=batch.mean(entropy),
        ratio=ratio,
        clip_fraction=((ratio.detach() - 1).abs() > clip_range).float().mean(),
    )


class _Learner:
    """Networks and optimizer of a run of PPO."""

    def __init__(
        self, task: LearningTask, config: PPOConfig, setup: TrainingSetup, initial: NetworkPolicy | None
    ) -> None:
        self.task, self.config, self.setup = task, config, setup
        self.is_pretrained = initial is not None
        head = task.head if task.teacher is None else task.teacher.spec.head
        self.policy = new_policy(task.student, setup.worker.views.student, head, task.guidance.losses)
        self.critic = _new_critic(config.critic, self.policy.spec)
        self.unfitted = [self.policy, self.critic]
        if initial is not None:
            self.policy.load_state_dict({**self.policy.state_dict(), **initial.state_dict()})
            self.unfitted = [self.critic]
            if not initial.normalizes_itself and self.critic.obs_mean.shape == self.policy.obs_mean.shape:
                self.critic.standardize(self.policy.obs_mean, self.policy.obs_std)
                self.unfitted = []
        self.no_loss = torch.zeros((), device=setup.device)
        # Two parameters, since Adam counts steps: the policy's first step comes after the warm-up of the critic.
        self.policy_weights = flatten_weights(self.policy.to(setup.device))
        self.critic_weights = flatten_weights(self.critic.to(setup.device))
        parameters = [self.policy_weights, self.critic_weights]
        optimizer = torch.optim.Adam(parameters, config.learning_rate, eps=1e-5, fused=True)
        self.state = TrainState(task, config, setup, {"policy": self.policy, "critic": self.critic}, optimizer)

    def update(self, rollout: Rollout, rng: np.random.Generator) -> dict[str, float]:
        """Learn from a rollout for some epochs; return the means of the loss terms."""
        config, state, teacher_loss = self.config, self.state, self.setup.teacher_loss
        if config.schedule == "linear":
            state.optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - state.progress)
        if not state.updates:
            fit_normalization(self.unfitted, rollout.obs.flatten(0, 1))
        value, next_value = self._values(rollout)
        advantage = advantages(rollout, value, next_value, config.gamma, config.gae_lambda)
        returns = advantage + value
        output = PolicyOutput(self.policy.spec.head, rollout.action_params)
        weight = state.weight.weight(state.progress)
        row = {"explained_variance": 1 - float(advantage.var() / returns.var()) if returns.var() > 0 else 0.0}
        row["distillation_weight"] = weight
        if teacher_loss is not None and rollout.labels is not None:
            teacher_loss.measure(rollout.labels)
            row |= teacher_loss.kl(output, rollout.labels)
        old_log_prob = output.log_prob(rollout.raw_action)
        steps = Minibatch.of_rollout(rollout, old_log_prob=old_log_prob, advantage=advantage, returns=returns)
        terms = [
            self._step(batch, weight)
            for _ in range(config.epochs)
            for batch in steps.split(config.batch_size, self.policy.recurrent, rng)
        ]
        return {name: float(torch.stack([term[name] for term in terms]).mean()) for name in terms[0]} | row

    def _step(self, batch: Minibatch, weight: float) -> dict[str, Tensor]:
        """Make one step of the optimizer; return the loss terms."""
        config, teacher_loss = self.config, self.setup.teacher_loss
        is_warmup = self.state.steps < config.critic_warmup
        output = self._output(batch)
        entropy = (output if config.entropy_coef else functional.detached(output)).entropy()
        value = self._value(batch.obs.flatten(0, batch.returns.ndim - 1)).view_as(batch.returns)
        terms = ppo_loss(output.log_prob(batch.raw_action), entropy, value, batch, config.clip_range)
        row = {
            "policy_loss": terms.policy.detach(),
            "value_loss": terms.value.detach(),
            "entropy": terms.entropy.detach(),
            "clip_fraction": terms.clip_fraction,
            "distillation_loss": self.no_loss,
        }
        loss = config.value_coef * terms.value
        if not is_warmup:
            loss = loss + terms.policy
            if config.entropy_coef:
                loss = loss - config.entropy_coef * terms.entropy
            if weight > 0 and teacher_loss is not None:
                divergence = teacher_loss(output, batch.to_labels(teacher_loss.head), self.state.progress)
                if self.task.guidance.proximal:
                    divergence = proximal_weight(terms.ratio, config.clip_range) * divergence
                distillation = divergence.mean()
                loss = loss + weight * distillation
                row["distillation_loss"] = distillation.detach()
        self._descend(loss, is_warmup)
        return row

    def _descend(self, loss: Tensor, critic_only: bool) -> None:
        policy_gradient, critic_gradient = self.policy_weights.grad, self.critic_weights.grad
        assert policy_gradient is not None
        assert critic_gradient is not None
        policy_gradient.zero_()
        critic_gradient.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        weights = [self.critic_weights] if critic_only else [self.policy_weights, self.critic_weights]
        nn.utils.clip_grad_norm_(weights, self.config.max_grad_norm)
        if critic_only:
            self.policy_weights.grad = None  # Adam skips it then, and does not count a step
        self.state.optimizer.step()
        self.policy_weights.grad = policy_gradient

    def _output(self, batch: Minibatch) -> PolicyOutput:
        if self.policy.recurrent:
            assert batch.state is not None
            return self.policy.unroll(batch.obs, batch.starts, batch.state)[0]
        output: PolicyOutput = self.policy(batch.obs)[0]
        return output

    @torch.no_grad()
    def _values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return V of the observations before and after each step, `[T, N]`."""
        value = self._value(rollout.obs.flatten(0, 1)).view(rollout.reward.shape)
        next_value = torch.cat([value[1:], self._value(rollout.next_obs)[None]])
        if rollout.last_obs:
            steps, slots = zip(*rollout.last_obs, strict=True)
            next_value[list(steps), list(slots)] = self._value(torch.stack([*rollout.last_obs.values()]))
        return value, next_value

    def _value(self, obs: Tensor) -> Tensor:
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
        raise ConfigError(
            f"students: a {type(student).__name__.lower()} student does not learn by gradient, which learning from "
            "reward needs. Use linear, mlp, cnn, impala or gru."
        )
    if not policy.recurrent and isinstance(policy.output, nn.Linear):
        # All actions are about equally likely at first (Andrychowicz 2021, arXiv 2006.05990).
        with torch.no_grad():
            policy.output.weight.mul_(0.01)
    return policy


def _new_critic(critic: AnyStudent | None, spec: PolicySpec) -> NetworkPolicy:
    """Return a network with one output; by default a small cnn for images and an mlp of 64x64 otherwise."""
    is_image = len(spec.obs_shape) == 3
    student = critic or (Cnn((16, 32), (8, 4), (4, 2), (128,)) if is_image else Mlp((64, 64), "tanh"))
    if not capability(student, "trains_from_reward"):
        raise ConfigError(f"ppo.critic: a {type(student).__name__.lower()} does not learn by gradient. Use mlp or cnn.")
    head = DeterministicHead(low=(-np.inf,), high=(np.inf,))
    network = student.build(dataclasses.replace(spec, head=head))
    if network.recurrent:
        raise ConfigError("ppo.critic: expected a feed-forward network, such as mlp or cnn.")
    return network
