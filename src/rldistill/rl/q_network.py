"""Q networks of DQN."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.spec import PolicySpec
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import DQNConfig
from rldistill.students import AnyStudent
from rldistill.students.student import build_student, capability


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
