"""The last hidden layer of a frozen network as features."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import field
from typing import Annotated, Any

from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.fields import PYTHON_ONLY, PositiveFloat, validated_dataclass
from rldistill.core.policy import Policy
from rldistill.core.spec import Head, Obs, PolicySpec
from rldistill.policies.network import NetworkPolicy
from rldistill.students.features.features import Features, Standardizer
from rldistill.students.student import capability

NOT_STORED = {"stored": False}
"""Metadata of fields that a saved student leaves out."""


@validated_dataclass
class TeacherFeatures(Features):
    """Standardized last hidden layer of a frozen feed-forward network, by default the teacher's.

    A run file names the network by its path. `load` replaces the path by the network itself, so that building a
    student reads no file and imports no code. A saved student stores the network's sizes and weights.

    Attributes:
        policy: Path of the network in a run file; empty for the teacher of the run.
        network: Configuration of the network: an actor, mlp, cnn or impala.
        head: Action head of the network.
        obs_clip: Limits of the network's standardized observations by entry; see `NetworkPolicy`.
        source: The network itself; not stored, because its weights are part of the student.
    """

    policy: str = ""
    network: Annotated[Any, PYTHON_ONLY] = None
    head: Annotated[Head | None, PYTHON_ONLY] = None
    obs_clip: Annotated[tuple[tuple[str, PositiveFloat], ...], PYTHON_ONLY] = ()
    source: Annotated[NetworkPolicy | None, PYTHON_ONLY] = field(
        default=None, repr=False, compare=False, metadata=NOT_STORED
    )

    normalizes_itself = True

    def __post_init__(self) -> None:
        if self.network is not None and not capability(self.network, "hidden_as_features"):
            raise ConfigError("features.network: expected the configuration of a network. Set features.policy instead.")

    def load(self, network: Policy) -> TeacherFeatures:
        """Return these features with `network` in place of its path.

        Raises:
            ConfigError: The network is not feed-forward, or has no hidden layer that can be stored.
        """
        name = self.policy or "the teacher"
        if not isinstance(network, NetworkPolicy) or not capability(network.config, "hidden_as_features"):
            raise ConfigError(f"features.policy: {name} is no actor, mlp, cnn or impala. Use one of these networks.")
        if network.recurrent:
            raise ConfigError(f"features.policy: {name} is recurrent. Use a feed-forward network.")
        obs_clip = tuple(network.obs_clip.items())
        return TeacherFeatures(self.policy, network.config, network.spec.head, obs_clip, network)

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the frozen network and the number of features.

        The weights are those of `source`; without it they are left to `load_state_dict`.

        Raises:
            ConfigError: Only a path is known.
        """
        if self.source is not None:
            spec.require_same_input(self.source.spec, "the student", self.policy or "the teacher")
            network = copy.deepcopy(self.source)
            network.value_head = None  # not used by features
        elif self.network is None or self.head is None:
            raise ConfigError(
                "features.policy: the network is not loaded. In Python, pass TeacherFeatures().load(load_policy(path))."
            )
        else:
            network = self.network.build(dataclasses.replace(spec, head=self.head))
            network.obs_clip = dict(self.obs_clip)
        network.requires_grad_(False)
        return nn.Sequential(LastHidden(network), Standardizer(network.width)), network.width


class LastHidden(nn.Module):
    """Last hidden layer of a network."""

    def __init__(self, network: NetworkPolicy) -> None:
        super().__init__()
        self.network = network

    def forward(self, obs: Obs) -> Tensor:
        """Return the layer for observations, `[B, width]`."""
        return self.network.hidden(obs)
