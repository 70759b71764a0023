"""Configuration of teacher training."""

from dataclasses import field
from typing import Any, Literal

from rldistill.core.fields import NumEnvs, NumThreads, Positive, validated_dataclass
from rldistill.core.policy import Device

ALGORITHMS = {
    "DQN": "stable_baselines3",
    "DoubleDQN": "rldistill.teachers.training.dqn",
    "QRDQN": "sb3_contrib",
    "PPO": "stable_baselines3",
    "A2C": "stable_baselines3",
    "SAC": "stable_baselines3",
    "TD3": "stable_baselines3",
    "TQC": "sb3_contrib",
}

Agents = Literal["central", "shared"]


@validated_dataclass
class TrainConfig:
    """Settings of the training of a teacher.

    Attributes:
        algorithm: DQN, DoubleDQN, QRDQN, PPO, A2C, SAC, TD3 or TQC.
        total_steps: environment steps.
        num_envs: environments that step together.
        eval_every: steps between evaluations, which select the best policy.
        eval_episodes: full episodes of an evaluation, with greedy actions.
        checkpoint_every: steps between checkpoints; each evaluation saves one, too.
        num_threads: number of threads of PyTorch.
        device: device of the networks; `auto` takes a GPU if there is one.
        normalize: True to standardize observations and scale rewards by running moments, as SB3's VecNormalize does;
            for PPO and A2C on vectors. The moments are stored in the policy.
        agents: with many agents, `central` trains one policy that observes all and acts for all, and `shared` one by
            which each agent acts on its own observation, with the reward of the team (PPO and A2C).
        hyperparameters: settings of the algorithm, by SB3's names; `learning_rate` may be `{start: 1e-3, end: 0}`, and
            `activation_fn` in `policy_kwargs` is a name: relu, tanh, elu, gelu; `replay_buffer_class` may be
            HerReplayBuffer, hindsight experience replay for environments with goals.
    """

    algorithm: str = "PPO"
    total_steps: Positive = 100_000
    num_envs: NumEnvs = 8
    eval_every: Positive = 50_000
    eval_episodes: Positive = 10
    checkpoint_every: Positive = 50_000
    num_threads: NumThreads = 1
    device: Device = "auto"
    normalize: bool = False
    agents: Agents = "central"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
