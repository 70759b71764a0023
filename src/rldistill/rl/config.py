"""How a student learns from reward: the settings of PPO and of DQN."""

from __future__ import annotations

from typing import Literal

from rldistill.core.device import Device
from rldistill.core.fields import (
    Fraction,
    FractionBelow1,
    NonNegative,
    NonNegativeFloat,
    NumEnvs,
    NumThreads,
    Positive,
    PositiveFloat,
    validated_dataclass,
)
from rldistill.core.schedules import FractionSchedule, Linear
from rldistill.students import AnyStudent


@validated_dataclass
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

    total_steps: Positive = 100_000
    num_envs: NumEnvs = 8
    rollout_length: Positive = 256
    epochs: Positive = 10
    batch_size: Positive = 64
    learning_rate: PositiveFloat = 3e-4
    schedule: Literal["linear", "constant"] = "constant"
    gamma: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    clip_range: PositiveFloat = 0.2
    value_coef: NonNegativeFloat = 0.5
    entropy_coef: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 0.5
    critic: AnyStudent | None = None
    critic_warmup: NonNegative = 0
    eval_every: Positive = 10_000
    eval_episodes: Positive = 20
    num_threads: NumThreads = 1
    device: Device = "auto"


@validated_dataclass
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

    total_steps: Positive = 50_000
    num_envs: NumEnvs = 8
    buffer_size: Positive = 50_000
    learning_starts: NonNegative = 1_000
    batch_size: Positive = 64
    gradient_steps: Positive = 4
    learning_rate: PositiveFloat = 5e-4
    schedule: Literal["linear", "constant"] = "constant"
    gamma: Fraction = 0.99
    n_steps: Positive = 1
    terminal_on_reward: bool = False
    target_update_interval: Positive = 500
    ema_decay: FractionBelow1 = 0.0
    epsilon_schedule: FractionSchedule = Linear(1.0, 0.05, 0.2)
    double: bool = True
    dueling: bool = False
    max_grad_norm: PositiveFloat = 10.0
    offline_steps: NonNegative = 10_000
    eval_every: Positive = 10_000
    eval_episodes: Positive = 20
    num_threads: NumThreads = 1
    device: Device = "auto"
