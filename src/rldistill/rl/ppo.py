"""PPO with a teacher beside it, or without one: one loop for every recipe that learns from reward on its own steps."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import ActionHead, DeterministicHead
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import action_gap
from rldistill.envs.config import EnvConfig
from rldistill.envs.rollout import StatefulPolicy
from rldistill.envs.seeding import block_generator
from rldistill.io.atomic import Mode
from rldistill.io.metrics import Metrics
from rldistill.io.progress import Progress, stage_progress
from rldistill.losses import functional
from rldistill.losses.objective import Term, student_spec, unreduced, with_temperatures
from rldistill.policies.layers import flatten_weights
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import PPOConfig
from rldistill.rl.guidance import DistillationWeight, Guidance, proximal_weight
from rldistill.rl.minibatch import Minibatch, minibatches
from rldistill.rl.replay import ReplayBuffer
from rldistill.rl.rollout import Rollout, advantages
from rldistill.rl.train_state import restore, save
from rldistill.rl.training import BestPolicyTracker, Score, TrainingSetup, run_stage, show, weights_of
from rldistill.students import AnyStudent, Cnn, Mlp
from rldistill.students.student import build_student, capability

SAVE_EVERY = 10.0
"""Seconds between checkpoints."""
ALONE = Guidance()
NO_LOSS = torch.zeros(())


def learn(
    env: EnvConfig,
    student: AnyStudent,
    config: PPOConfig,
    folder: Path,
    *,
    teacher: Policy | None = None,
    guidance: Guidance = ALONE,
    initial: NetworkPolicy | None = None,
    head: ActionHead | None = None,
    score: Score | None = None,
    seed: int = 0,
    mode: Mode = "new",
    progress: Progress | bool = True,
) -> NetworkPolicy:
    """Let a student learn from reward, and from what its teacher says of the states it comes to.

    The loss is -E[min(r A, clip(r, 1 - c, 1 + c) A)] + value_coef E[(V - R)^2] - entropy_coef H + lambda D, r the
    ratio of the new to the old probability of an action, D the distillation losses of `guidance` and lambda its
    weight. Without a teacher, or with lambda 0, it is PPO.

    Args:
        env: the environment; Atari's rewards are clipped to their sign.
        student: which network.
        config: how it learns from reward.
        folder: becomes `policy.safetensors`, `policy.json`, `metrics.jsonl` and `checkpoints/`.
        teacher: says what it would do, once for each step.
        guidance: what of that counts, how much, and for how long.
        initial: weights to start from.
        head: how it draws its actions, where no teacher stands beside it; by default as the environment takes them.
        score: full episodes of a policy; the best one is kept. Without it, the last.
        seed: of weights, episodes and draws.
        mode: "new" refuses a folder that exists, "resume" continues it, "overwrite" discards it.
        progress: True shows progress on a terminal; or an object with `update(done, total, score)`.

    Raises:
        ConfigError: a student that does not learn by gradient, or guidance without a teacher.
        SpecMismatchError: teacher, student and environment do not fit.
    """
    with stage_progress(progress, "learn", "steps") as report:
        return run_stage(
            student,
            folder,
            lambda: _Training(env, student, config, folder, teacher, guidance, initial, head, score, seed),
            lambda training: training.run(report),
            threads=config.num_threads,
            seed=seed,
            mode=mode,
        )


class _Training(BestPolicyTracker):
    """The state of one run: networks, optimiser, environments, the weight of the teacher, the best policy so far."""

    def __init__(
        self,
        env: EnvConfig,
        student: AnyStudent,
        config: PPOConfig,
        folder: Path,
        teacher: Policy | None,
        guidance: Guidance,
        initial: NetworkPolicy | None,
        head: ActionHead | None,
        score: Score | None,
        seed: int,
    ) -> None:
        self.config, self.folder, self.guidance, self.score, self.seed = config, folder, guidance, score, seed
        setting = TrainingSetup.of(env, teacher, guidance, config.num_envs, seed)
        self.life, self.teacher, self.head = setting.life, setting.teacher, setting.head
        torch.manual_seed(seed)
        self.policy = new_policy(
            student, setting.sight.student, head if teacher is None else teacher.spec.head, guidance.losses
        )
        spec = self.policy.spec
        if initial is not None:
            self.policy.load_state_dict({**self.policy.state_dict(), **initial.state_dict()})
        self.critic = _critic(config.critic, spec)
        self.unseeing = [self.critic] if initial is not None else [self.policy, self.critic]
        if (
            initial is not None
            and not initial.normalizes_itself
            and self.critic.obs_mean.shape == self.policy.obs_mean.shape
        ):
            self.critic.standardize(self.policy.obs_mean, self.policy.obs_std)
            self.unseeing = []
        self.candidate, self.player = self.policy, setting.player(self.policy)
        self.terms: tuple[Term, ...] | None = None
        self.gap = torch.zeros(())
        # Apart, since Adam counts steps: what rests while the critic warms up has to begin with its first one.
        self.weights, self.critics = flatten_weights(self.policy), flatten_weights(self.critic)
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            [self.weights, self.critics], config.learning_rate, eps=1e-5, fused=True
        )
        self.weaning = DistillationWeight(guidance)
        self.steps = self.updates = self.studied = self.rows = 0
        self.networks: Mapping[str, NetworkPolicy] = {"policy": self.policy, "critic": self.critic}
        self.memories: Mapping[str, StatefulPolicy] = {"student": self.player} | (
            {} if self.teacher is None else {"teacher": self.teacher}
        )
        self.replay: ReplayBuffer | None = None
        self.best_score, self.best = -np.inf, weights_of(self.policy)
        self.next_eval = config.eval_every
        self.saved = time.monotonic()
        self.begins_with = initial is not None
        restore(self)
        self.metrics = Metrics(folder)
        self.metrics.keep(self.rows)

    def run(self, progress: Progress) -> None:
        config, started = self.config, time.monotonic()
        if self.begins_with and not self.rows and self.score is not None:
            self.add({"step": 0, "update": 0} | self.scored())
        while self.steps < config.total_steps:
            rng = block_generator(self.seed, "train", 0, 0, self.updates)
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            done = self.steps / config.total_steps
            guided = self.guidance.steps_of_teacher(done)
            experience = self.life.play(self.player, self.teacher, config.rollout_length, guided, generator)
            row = self._improve(experience, done, rng)
            self.steps += config.num_envs * config.rollout_length
            self.updates += 1
            self._note(row, time.monotonic() - started)
            if time.monotonic() - self.saved > SAVE_EVERY:
                save(self)
                self.saved = time.monotonic()
            progress.update(min(self.steps, config.total_steps), config.total_steps, self.life.mean_return)

    def best_policy(self) -> NetworkPolicy:
        if self.score is not None:
            self.policy.load_state_dict(self.best)
        return self.policy.eval()

    def _improve(self, experience: Rollout, done: float, rng: np.random.Generator) -> dict[str, float]:
        """Some epochs over what was lived through."""
        config = self.config
        if config.schedule == "linear":
            self.optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - done)
        if not self.updates:
            show(self.unseeing, experience.obs.flatten(0, 1))
        value, next_value = self._values(experience)
        ended = experience.terminated | experience.truncated
        gained = advantages(
            experience.reward, value, next_value, experience.terminated, ended, config.gamma, config.gae_lambda
        )
        spread = (gained + value).var()
        sums = {"explained_variance": float(1 - (gained.var() / spread)) if spread > 0 else 0.0}
        with torch.no_grad():
            old = self.policy.spec.head.log_prob(experience.action_params, experience.raw_action)
        if self.terms is None and self.head is not None and experience.labels is not None:
            self.gap = self.gap or torch.tensor(_gap(self.head, experience.labels))
            self.terms = with_temperatures(self.guidance.losses, self.head, lambda: float(self.gap))
        weight = self.weaning.weight(done)
        sums |= self._beside_teacher(experience)
        remembers = self.policy.recurrent
        rows = [
            self._step(part, weight, done)
            for _ in range(config.epochs)
            for part in minibatches(experience, old, gained, gained + value, config.batch_size, remembers, rng)
        ]
        means = {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}
        return {**means, **sums, "distillation_weight": weight}

    def _beside_teacher(self, experience: Rollout) -> dict[str, float]:
        """KL(teacher || student) on the student's states, whatever the losses are and however much they count."""
        if self.head is None or experience.labels is None or not self.head.same_space(self.policy.spec.head):
            return {}
        temperature = max(float(self.gap) / 2, 1e-6) if self.head.action_values else 1.0
        teacher, student = (
            PolicyOutput(self.head, experience.labels),
            PolicyOutput(self.policy.spec.head, experience.action_params),
        )
        return {"teacher_kl": float(functional.kl(teacher, student, temperature, 1.0).mean())}

    def _values(self, experience: Rollout) -> tuple[Tensor, Tensor]:
        """V of what was seen and of what each step led to, `[T, N]`."""
        with torch.no_grad():
            flat = self._value(experience.obs.flatten(0, 1)).view(experience.reward.shape)
            following = torch.cat([flat[1:], self._value(experience.next_obs)[None]])
            if experience.last_obs:
                at = torch.tensor([*experience.last_obs])
                following[at[:, 0], at[:, 1]] = self._value(torch.stack([*experience.last_obs.values()]))
        return flat, following

    def _value(self, obs: Tensor) -> Tensor:
        # Not its output, in which what is illegal is ruled out: a value is no action.
        return self.critic.unmasked_params(obs).squeeze(-1)

    def _step(self, part: Minibatch, distillation: float, done: float) -> dict[str, Tensor]:
        """One step of the optimiser on a minibatch."""
        config = self.config
        output = self._say(part)
        value = self._value(part.obs.flatten(0, part.returns.ndim - 1)).view_as(part.returns)
        ratio = (output.log_prob(part.raw_action) - part.old).exp()
        entropy = (output if config.entropy_coef else functional.detached(output)).entropy()
        critic_loss = F.mse_loss(value, part.returns)
        loss = config.value_coef * critic_loss
        row = {"value_loss": critic_loss.detach(), "entropy": entropy.detach().mean(), "distillation_loss": NO_LOSS}
        row["clip_fraction"] = ((ratio.detach() - 1).abs() > config.clip_range).float().mean()
        warming_up = self.steps < config.critic_warmup
        if not warming_up:
            advantage = part.normalised_advantage()
            clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
            gain = torch.min(ratio * advantage, clipped * advantage)
            if config.entropy_coef:
                gain = gain + config.entropy_coef * entropy
            loss = loss - torch.dot(part.weight.flatten(), gain.flatten()) / part.weight.sum().clamp_min(1)
            if distillation > 0 and part.labels is not None:
                divergence = self._distillation(output, part, done)
                if self.guidance.proximal:
                    divergence = proximal_weight(ratio, config.clip_range) * divergence
                loss = loss + distillation * divergence.mean()
                row["distillation_loss"] = divergence.detach().mean()
        learn = [self.critics] if warming_up else [self.weights, self.critics]
        gradient = self.weights.grad
        assert gradient is not None
        assert self.critics.grad is not None
        gradient.zero_()
        self.critics.grad.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learn, config.max_grad_norm)
        if warming_up:
            self.weights.grad = None
        self.optimizer.step()
        self.weights.grad = gradient
        return row

    def _say(self, part: Minibatch) -> PolicyOutput:
        if self.policy.recurrent:
            assert part.state is not None
            output, _ = self.policy.unroll(part.obs, part.starts, part.state)
            return output
        action_params: PolicyOutput = self.policy(part.obs)[0]
        return action_params

    def _distillation(self, output: PolicyOutput, part: Minibatch, done: float) -> Tensor:
        """The distillation losses of a minibatch, weighted and summed, unreduced."""
        assert self.head is not None
        assert self.terms is not None
        labels = part.labelled(self.head)
        return reduce(torch.add, [term.weight(done) * unreduced(term, output, labels) for term in self.terms])

    def _note(self, row: dict[str, float], seconds: float) -> None:
        """A row of `metrics.jsonl`; where it is time, the score of the policy, which is kept if it is the best."""
        recent = self.life.mean_return
        document: dict[str, Any] = {"step": self.steps, "update": self.updates, "return": recent, **row}
        document |= self.guidance.ends
        if self.score is not None and (self.steps >= self.next_eval or self.steps >= self.config.total_steps):
            self.next_eval += self.config.eval_every
            document |= self.scored()
        if self.steps > self.config.critic_warmup:  # until then the policy stays, so that it holds is no merit
            done = self.steps / self.config.total_steps
            for text in self.weaning.update(self.life.recent, self.life.num_ended, done):
                warnings.warn(f"{self.folder}: {text}", stacklevel=2)
        self.add(document | {"seconds": round(seconds, 2)})


def _spec_of_learner(env: PolicySpec, head: ActionHead | None, terms: tuple[Term, ...]) -> PolicySpec:
    """The environment's spec with a head that draws actions: of the given kind where that draws, too."""
    head = head or env.head
    if not (head.discrete or head.stochastic):
        head = head.as_kind("gaussian")
    spec = student_spec(dataclasses.replace(env, head=head), terms)
    if spec.head.action_values:
        raise SpecMismatchError("a policy that learns by PPO has no Q values: take losses on what it does")
    return spec


def new_policy(
    student: AnyStudent, env: PolicySpec, head: ActionHead | None, losses: tuple[Term, ...]
) -> NetworkPolicy:
    """A student that can learn by PPO.

    Args:
        student: which network.
        env: what the environment shows it, and which actions it takes.
        head: the teacher's, which the student's is like; by default the environment's.
        losses: on what the teacher says.

    Raises:
        ConfigError: it does not learn by gradient.
        SpecMismatchError: losses on Q values.
    """
    policy = build_student(student, _spec_of_learner(env, head, losses))
    if not capability(student, "trains_from_reward"):
        raise ConfigError(
            f"students: a {type(student).__name__.lower()} student does not learn by gradient, as learning from reward "
            "does; take linear, mlp, cnn, impala or gru"
        )
    if not policy.recurrent and isinstance(policy.output, nn.Linear):
        # Nothing is preferred before anything is learned.
        with torch.no_grad():
            policy.output.weight.mul_(0.01)
    return policy


def _critic(critic: AnyStudent | None, spec: PolicySpec) -> NetworkPolicy:
    """A network that says one number."""
    pictures = len(spec.obs_shape) == 3
    raw_action = critic or (Cnn((16, 32), (8, 4), (4, 2), (128,)) if pictures else Mlp((64, 64), "tanh"))
    number = DeterministicHead(low=(-np.inf,), high=(np.inf,))
    if not capability(raw_action, "trains_from_reward"):
        raise ConfigError(
            f"ppo.critic: a {type(raw_action).__name__.lower()} does not learn by gradient; take mlp or cnn"
        )
    network = raw_action.build(dataclasses.replace(spec, head=number))
    if network.recurrent:
        raise ConfigError("ppo.critic: expected a feed-forward network, such as an mlp or a cnn")
    return network


def _gap(head: ActionHead, labels: Tensor) -> float:
    return action_gap(labels.flatten(0, 1).numpy()) if head.action_values else 1.0
