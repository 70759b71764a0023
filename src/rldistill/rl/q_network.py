"""Networks that say what actions are worth, as DQN trains them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.policies.network import NetworkPolicy
from rldistill.rl.config import DQNConfig
from rldistill.rl.dueling import Dueling
from rldistill.students import AnyStudent
from rldistill.students.student import build_student, capability


def worth_keeping(policy: NetworkPolicy, dataset: Dataset) -> bool:
    """Whether to keep what fixed layers make of a picture in its place: it is smaller, and there is room for it."""
    spec = policy.spec
    frame = math.prod(spec.obs_shape[1:] if spec.frames else spec.obs_shape) * np.dtype(spec.obs_dtype).itemsize
    small = len(spec.obs_shape) == 3 and policy.num_frozen_layers > 0 and 4 * policy.num_features < frame
    return small and dataset.has_room_for(2 * policy.num_features)  # of each observation and the next


def _of_values(spec: PolicySpec) -> PolicySpec:
    return dataclasses.replace(spec, head=spec.head.as_kind("q_values"))


def new_policy(student: AnyStudent, env: PolicySpec, config: DQNConfig) -> NetworkPolicy:
    """A student that can learn by DQN in an environment that shows and takes what `env` says.

    Raises:
        ConfigError: it does not learn by gradient, or it remembers.
        SpecMismatchError: actions that are not one choice.
    """
    if not env.head.single_choice:
        raise SpecMismatchError(
            f"DQN learns the values of one choice among actions, and these are {env.head.kind}: take a recipe that "
            "learns by PPO"
        )
    policy = build_student(student, _of_values(env))
    if not capability(student, "trains_from_reward") or not isinstance(policy.output, nn.Linear):
        raise ConfigError(
            f"students: a {type(student).__name__.lower()} student does not learn by gradient, as learning from reward "
            "does; take linear, mlp, cnn or impala"
        )
    if policy.recurrent:
        raise ConfigError("students: a gru student remembers, which DQN's replay does not; take a recipe of PPO")
    if config.dueling:
        policy.output = Dueling(policy.output.in_features, policy.output.out_features)
    return policy


@dataclass(frozen=True)
class ReplayObsEncoder:
    """What the replay holds of each step: what is seen, or the few numbers that fixed layers make of a picture.

    Attributes:
        policy: whose layers they are.
        features: whether these numbers are held.
    """

    policy: NetworkPolicy
    features: bool

    @property
    def spec(self) -> PolicySpec:
        """Of what is held."""
        if not self.features:
            return self.policy.spec
        width = self.policy.num_features
        return dataclasses.replace(self.policy.spec, obs_shape=(width,), obs_dtype="float32", frames=None)

    def of(self, shown: Tensor) -> NDArray[Any]:
        """What is held of observations, `[B, *obs_shape]`."""
        if not self.features:
            return shown.numpy()
        with torch.no_grad():
            return self.policy.frozen_features(shown).numpy()

    def action_params(self, network: NetworkPolicy, held: Tensor) -> PolicyOutput:
        """What a network with the same fixed layers says of it."""
        if self.features:
            return network.from_frozen_features(held)
        output: PolicyOutput = network(held)[0]
        return output
