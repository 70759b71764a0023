"""A decision tree: a few comparisons that a person can read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.layers import require_positive
from rldistill.policies.network import NetworkPolicy
from rldistill.students.features.maps import AnyFeatures, Raw

DEEPEST = 24
EPSILON = 1e-6
"""Added to the shares of a leaf before their logarithm is taken."""


@dataclass(frozen=True)
class Tree:
    """A tree of comparisons of one entry with one number (CART, Breiman 1984), grown greedily by scikit-learn.

    Under DAgger and with weights V(s) - min_a Q(s, a), V = max_a Q, for a teacher of Q values it is VIPER (Bastani
    2018, arXiv 1805.08328). It is grown anew on all data in each round.

    Attributes:
        max_depth: comparisons on the longest way to a leaf.
        max_leaves: leaves, the most useful first; None is as many as the depth allows.
        min_samples: transitions in a leaf.
        alternating_passes: passes over the fitted tree that choose each split anew, given the other splits, so that
            the actions cost less (Carreira-Perpinan and Tavallali 2018, NeurIPS 31); each takes about as long as
            growing.
        features: what is compared.
        nodes: of the tree that was grown; 0 before.
    """

    max_depth: int = 8
    max_leaves: int | None = None
    min_samples: int = 1
    alternating_passes: int = 0
    features: AnyFeatures = Raw()
    nodes: int = 0

    def __post_init__(self) -> None:
        require_positive("max_depth, min_samples", [self.max_depth, self.min_samples])
        if type(self.alternating_passes) is not int or self.alternating_passes < 0:
            raise ConfigError(f"alternating_passes: expected a number of passes, found {self.alternating_passes!r}")
        if self.max_depth > DEEPEST:
            raise ConfigError(f"max_depth: expected at most {DEEPEST}, found {self.max_depth}")
        if self.max_leaves is not None:
            require_positive("max_leaves", [self.max_leaves])
            if self.max_leaves < 2:
                raise ConfigError(f"max_leaves: expected at least 2, found {self.max_leaves}")
        if type(self.nodes) is not int or not 0 <= self.nodes < 1 << (DEEPEST + 1):
            raise ConfigError(f"nodes: expected a size, found {self.nodes!r}")

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """The student for `spec`, of one leaf until it is grown."""
        body, width = self.features.build(spec)
        return TreePolicy(self, spec, body, width)


class TreePolicy(NetworkPolicy):
    """A tree as arrays over its nodes, the root first, children after their parents.

    Attributes:
        feature: which of the features is compared; -1 at a leaf.
        num_features: how many there are.
        threshold: the left child is next where the entry is at most that.
        left, right: the children.
        value: `[nodes, P]`, the head's numbers at a leaf.
    """

    feature: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, config: Tree, spec: PolicySpec, body: nn.Module, num_features: int) -> None:
        super().__init__(config, spec, body, 0, nn.Identity())
        self.normalizes_itself, self.num_features = config.features.normalizes_itself, num_features
        nodes = max(config.nodes, 1)
        # In floats, which the files of policies hold; exact up to 2^24.
        self.register_buffer("feature", torch.full((nodes,), -1.0))
        self.register_buffer("left", torch.zeros(nodes))
        self.register_buffer("right", torch.zeros(nodes))
        self.threshold = nn.Parameter(torch.zeros(nodes))
        self.value = nn.Parameter(torch.zeros(nodes, spec.head.num_params))

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Observations `[B, *obs_shape]` to the head's parameters `[B, P]`, and the entries compared as features."""
        entries = self._entries(obs)
        x = self.compared(entries)
        return self._legal(PolicyOutput(self.spec.head, self.decide(x), features=x), entries), None

    def compared(self, obs: Obs) -> Tensor:
        """What the nodes compare, `[B, N]`."""
        flat: Tensor = self.body(self.standardised(self._entries(obs)))
        return flat

    def decide(self, x: Tensor) -> Tensor:
        """The numbers of the leaves that `[B, N]` lead to, `[B, P]`."""
        feature, left, right = self.feature.long(), self.left.long(), self.right.long()
        node = torch.zeros(len(x), dtype=torch.int64)
        for _ in range(self.config.max_depth):
            at = feature[node]
            goes_left = x.gather(1, at.clamp_min(0)[:, None]).squeeze(1) <= self.threshold[node]
            node = torch.where(at < 0, node, torch.where(goes_left, left[node], right[node]))
        return self.value[node]

    def require_sound(self, file: str) -> None:
        """Raise CorruptArtifactError for arrays that are no tree."""
        nodes, width = len(self.feature), self.num_features
        at = torch.arange(nodes)
        inner = self.feature >= 0
        whole = all(torch.equal(array, array.round()) for array in (self.feature, self.left, self.right))
        ahead = [(child[inner] > at[inner]) & (child[inner] < nodes) for child in (self.left, self.right)]
        if not whole or bool((self.feature >= width).any()) or not all(bool(each.all()) for each in ahead):
            raise CorruptArtifactError(f"{file}: its arrays are no tree")
