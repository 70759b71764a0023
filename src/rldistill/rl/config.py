"""How a student learns from reward: the settings of PPO and of DQN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rldistill.core.device import Device
from rldistill.core.errors import ConfigError
from rldistill.core.schedules import Linear, Schedule
from rldistill.students import AnyStudent


@dataclass(frozen=True)
class PPOConfig:
    """How a policy learns from reward (Schulman 2017, arXiv 1707.06347); names and defaults are mostly SB3's.

    Attributes:
        total_steps: environment steps.
        num_envs: environments that are played together.
        rollout_length: steps of each between updates.
        epochs: passes over the steps of one update.
        batch_size: steps in a minibatch.
        learning_rate: Adam's, at the start.
        schedule: whether the rate falls to zero in a straight line or stays.
        gamma: discount.
        gae_lambda: of the advantages.
        clip_range: how far the probability of an action may move before its gradient is cut.
        value_coef: weight of the critic's squared error.
        entropy_coef: weight of the entropy bonus.
        max_grad_norm: the largest gradient norm, of policy and critic together.
        critic: the network that says the values; it is thrown away afterwards. By default an mlp of 64x64, or on
            pictures a small cnn.
        critic_warmup: steps in which the critic alone learns.
        eval_every: steps between evaluations; the best policy is kept.
        eval_episodes: of each, others than those that it is judged by at the end.
        num_threads: number of threads of PyTorch.
        device: device of the networks; `auto` takes a GPU if there is one. Environments stay on the CPU.
    """

    total_steps: int = 100_000
    num_envs: int = 8
    rollout_length: int = 256
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 3e-4
    schedule: Literal["linear", "constant"] = "constant"
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    max_grad_norm: float = 0.5
    critic: AnyStudent | None = None
    critic_warmup: int = 0
    eval_every: int = 10_000
    eval_episodes: int = 20
    num_threads: int = 1
    device: Device = "auto"

    def __post_init__(self) -> None:
        for name in (
            "total_steps", "num_envs", "rollout_length", "epochs", "batch_size", "eval_every", "eval_episodes",
            "num_threads",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"ppo.{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("learning_rate", "clip_range", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"ppo.{name}: expected a positive number, found {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"ppo.{name}: expected a number from 0 to 1, found {getattr(self, name)}")


@dataclass(frozen=True)
class DQNConfig:
    """How a policy of Q values learns from reward. Mnih 2015; double: van Hasselt 2015, arXiv 1509.06461.

    Attributes:
        total_steps: environment steps.
        num_envs: environments that are played together.
        buffer_size: transitions that are remembered, the teacher's data not counted.
        learning_starts: steps before the first gradient.
        batch_size: transitions in a gradient step, drawn from the teacher's data and the buffer together, if there are
            both.
        gradient_steps: for each step of all environments.
        learning_rate: Adam's, at the start.
        schedule: whether the rate falls to zero in a straight line, from the first step of its own on, or stays.
        gamma: discount.
        n_steps: of the returns.
        terminal_on_reward: whether returns end at each reward, as for games of many points.
        target_update_interval: gradient steps between copies of the network that says the targets.
        ema_decay: of the exponential moving average of the weights, w <- d w + (1 - d) w' with
            d = min(ema_decay, n / (n + 10)) at gradient step n, which above 0 is what is evaluated and kept (as
            Izmailov 2018, arXiv 1803.05407, does with a uniform average), while the last weights act.
        epsilon_schedule: the share of random actions over the course of training.
        double: whether the network itself chooses the action whose value the target network says.
        dueling: whether the last layer says a value and advantages (Wang 2016, arXiv 1511.06581); it is stored as one.
        max_grad_norm: the largest gradient norm.
        offline_steps: gradient steps on the teacher's data before the first of the student's own.
        eval_every: steps between evaluations; the best policy is kept.
        eval_episodes: of each, others than those that it is judged by at the end.
        num_threads: number of threads of PyTorch.
        device: device of the networks; `auto` takes a GPU if there is one. Environments stay on the CPU.
    """

    total_steps: int = 50_000
    num_envs: int = 8
    buffer_size: int = 50_000
    learning_starts: int = 1_000
    batch_size: int = 64
    gradient_steps: int = 4
    learning_rate: float = 5e-4
    schedule: Literal["linear", "constant"] = "constant"
    gamma: float = 0.99
    n_steps: int = 1
    terminal_on_reward: bool = False
    target_update_interval: int = 500
    ema_decay: float = 0.0
    epsilon_schedule: Schedule = Linear(1.0, 0.05, 0.2)
    double: bool = True
    dueling: bool = False
    max_grad_norm: float = 10.0
    offline_steps: int = 10_000
    eval_every: int = 10_000
    eval_episodes: int = 20
    num_threads: int = 1
    device: Device = "auto"

    def __post_init__(self) -> None:
        for name in (
            "total_steps", "num_envs", "buffer_size", "batch_size", "gradient_steps", "n_steps",
            "target_update_interval",
            "eval_every", "eval_episodes", "num_threads",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"dqn.{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"dqn.{name}: expected a positive number, found {getattr(self, name)}")
        if not 0 <= self.gamma <= 1:
            raise ConfigError(f"dqn.gamma: expected a number from 0 to 1, found {self.gamma}")
        if not all(0 <= self.epsilon_schedule(done) <= 1 for done in (0.0, 1.0)):
            raise ConfigError("dqn.epsilon_schedule: expected shares from 0 to 1")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"dqn.ema_decay: expected a number from 0 to below 1, found {self.ema_decay}")
