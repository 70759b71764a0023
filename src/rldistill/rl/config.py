"""Settings of PPO and DQN."""

from typing import Literal

from rldistill.core.errors import ConfigError
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
from rldistill.core.policy import Device
from rldistill.core.schedules import FractionSchedule, Linear
from rldistill.students import AnyStudent


@validated_dataclass
class LearningConfig:
    """Settings that PPO and DQN share; the final evaluation uses other episodes than these.

    Attributes:
        total_steps: environment steps.
        num_envs: environments that step together.
        batch_size: steps in a minibatch; those of dataset and replay buffer together.
        learning_rate: initial learning rate of Adam.
        schedule: `linear` lowers the learning rate to 0 over the environment steps, `constant` keeps it.
        gamma: discount factor.
        max_grad_norm: maximum gradient norm of all networks together.
        eval_every: steps between evaluations, which select the best policy.
        eval_episodes: episodes of an evaluation.
        num_threads: number of threads of PyTorch.
        device: device of the networks; `auto` takes a GPU if there is one. Environments stay on the CPU.
    """

    total_steps: Positive = 100_000
    num_envs: NumEnvs = 8
    batch_size: Positive = 64
    learning_rate: PositiveFloat = 3e-4
    schedule: Literal["linear", "constant"] = "constant"
    gamma: Fraction = 0.99
    max_grad_norm: PositiveFloat = 0.5
    eval_every: Positive = 10_000
    eval_episodes: Positive = 20
    num_threads: NumThreads = 1
    device: Device = "auto"


@validated_dataclass
class PPOConfig(LearningConfig):
    """Settings of PPO (Schulman 2017, arXiv 1707.06347); most names and defaults are SB3's.

    Attributes:
        rollout_length: steps of each environment between updates.
        epochs: passes over a rollout.
        gae_lambda: decay of the generalized advantage estimates.
        clip_range: change of the probability ratio at which its gradient is clipped.
        value_coef: weight of the critic's squared error.
        entropy_coef: weight of the entropy bonus.
        critic: network of the critic, which is not stored; by default an mlp of 64x64, a small cnn for images,
            a small multi_input for dicts with images. It observes all agents of a team (MAPPO, Yu 2022,
            arXiv 2103.01955), each of which acts on its own observation.
        critic_warmup: first environment steps, in which only the critic learns.
    """

    rollout_length: Positive = 256
    epochs: Positive = 10
    gae_lambda: Fraction = 0.95
    clip_range: PositiveFloat = 0.2
    value_coef: NonNegativeFloat = 0.5
    entropy_coef: NonNegativeFloat = 0.0
    critic: AnyStudent | None = None
    critic_warmup: NonNegative = 0


@validated_dataclass
class DQNConfig(LearningConfig):
    """Settings of DQN (Mnih 2015).

    Attributes:
        buffer_size: transitions in the replay buffer, without those of the teacher's dataset.
        learning_starts: environment steps before the first gradient step.
        gradient_steps: gradient steps for each step of all environments.
        n_steps: steps of the returns.
        terminal_on_reward: True if returns end at each reward, for games of many points.
        target_update_interval: gradient steps between updates of the target network.
        ema_decay: decay of the exponential moving average of the weights, w <- d w + (1 - d) w' with
            d = min(ema_decay, n / (n + 10)) at gradient step n. Above 0, the average is evaluated and stored
            (Izmailov 2018, arXiv 1803.05407, use a uniform average), and the latest weights act.
        epsilon_schedule: probability of a random action over the course of training.
        double: True for double DQN (van Hasselt 2015, arXiv 1509.06461).
        dueling: True for a dueling last layer (Wang 2016, arXiv 1511.06581), which is stored as a linear one.
        offline_steps: gradient steps on the teacher's dataset before the first environment step.
    """

    total_steps: Positive = 50_000
    learning_rate: PositiveFloat = 5e-4
    max_grad_norm: PositiveFloat = 10.0
    buffer_size: Positive = 50_000
    learning_starts: NonNegative = 1_000
    gradient_steps: Positive = 4
    n_steps: Positive = 1
    terminal_on_reward: bool = False
    target_update_interval: Positive = 500
    ema_decay: FractionBelow1 = 0.0
    epsilon_schedule: FractionSchedule = Linear(1.0, 0.05, 0.2)
    double: bool = True
    dueling: bool = False
    offline_steps: NonNegative = 10_000


@validated_dataclass
class DiscriminatorConfig:
    """Settings of a discriminator of recorded steps and of the student's own.

    Attributes:
        inputs: `state_action`, or `state` for a discriminator that does not see the action; of `airl`, a g.
        hidden: dense layers on the observation, or on the last hidden layer of a small cnn for images, and the action.
        learning_rate: learning rate of Adam.
        epochs: passes over each rollout.
        batch_size: steps of the student in a minibatch, beside as many recorded ones.
        gradient_penalty: weight of E[(|grad f| - 1)^2] between recorded steps and those of the student (Gulrajani
            2017, arXiv 1704.00028).
        spectral_norm: True to divide each layer by its largest singular value (Miyato 2018, arXiv 1802.05957).
    """

    inputs: Literal["state_action", "state"] = "state_action"
    hidden: tuple[Positive, ...] = (64, 64)
    learning_rate: PositiveFloat = 3e-4
    epochs: Positive = 2
    batch_size: Positive = 256
    gradient_penalty: NonNegativeFloat = 10.0
    spectral_norm: bool = False


@validated_dataclass
class AdversarialConfig:
    """Settings of a reward from a discriminator D, which is the probability that a step was recorded.

    Attributes:
        form: `log_ratio`, log D - log(1 - D), the logarithm of the ratio of the densities of recorded steps and the
            student's own (Kostrikov 2019, arXiv 1809.02925); `gail`, -log(1 - D) (Ho 2016, arXiv 1606.03476); or
            `airl`, log_ratio with D = exp(f) / (exp(f) + student(a | s)) and f = g + gamma h(s') - h(s) (Fu 2018,
            arXiv 1710.11248).
        absorbing: True if an episode that terminates ends in an absorbing state, whose reward is that of the optimal D,
            and where a termination counts gamma / (1 - gamma) steps. Without it, the sign of the reward decides if
            short or long episodes are better (Kostrikov 2019).
        discriminator_weight: weight of this reward relative to `teacher_weight`; 0 for none, and no discriminator.
        teacher_weight: weight lambda of a further reward, log teacher(a | s) - log student(a | s). It needs a teacher
            that labels the student's states, and a discriminator of states, since D would see this ratio otherwise.
        discriminator: network and optimizer of D.
    """

    form: Literal["log_ratio", "gail", "airl"] = "log_ratio"
    absorbing: bool = True
    discriminator_weight: NonNegativeFloat = 1.0
    teacher_weight: NonNegativeFloat = 0.0
    discriminator: DiscriminatorConfig = DiscriminatorConfig()

    def __post_init__(self) -> None:
        if not self.discriminator_weight and not self.teacher_weight:
            raise ConfigError(
                "discriminator_weight: it and teacher_weight are 0, so there is no reward. Set one of them."
            )
        compares_actions = self.form == "airl" or self.discriminator.inputs == "state_action"
        if self.teacher_weight and self.discriminator_weight and compares_actions:
            raise ConfigError(
                "teacher_weight: this discriminator compares actions already. Use discriminator.inputs: state with "
                "log_ratio or gail, or teacher_weight: 0."
            )
