"""Decision tree that a person can read."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from rldistill.core.errors import CorruptArtifactError
from rldistill.core.fields import PYTHON_ONLY, NonNegative, Positive, validated_dataclass
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.network import NetworkPolicy
from rldistill.students.features import AnyFeatures, Raw
from rldistill.students.student import Student

MAX_DEPTH = 24
SHARE_EPSILON = 1e-6
"""Constant that is added to the shares of a leaf before their logarithm is taken."""


@validated_dataclass
class Tree(Student):
    """Tree of comparisons of one feature with one threshold (CART, Breiman 1984), fitted greedily by scikit-learn.

    With DAgger and weights V(s) - min_a Q(s, a), V = max_a Q, for a teacher of Q values it is VIPER (Bastani 2018,
    arXiv 1805.08328). Each round fits a new tree to all data.

    Attributes:
        max_depth: Comparisons on the longest path to a leaf.
        max_leaves: Number of leaves, the most useful first; None for no limit but the depth.
        min_samples: Least number of transitions in a leaf.
        alternating_passes: Passes over the fitted tree that optimize each split given the other splits
            (Carreira-Perpinan and Tavallali 2018, NeurIPS 31); each takes about as long as the first fit.
        features: Features that are compared.
        nodes: Number of nodes of the fitted tree; 0 before the fit.
    """

    max_depth: Annotated[Positive, Le(MAX_DEPTH)] = 8
    max_leaves: Annotated[Positive, Ge(2)] | None = None
    min_samples: Positive = 1
    alternating_passes: NonNegative = 0
    features: AnyFeatures = Raw()
    nodes: Annotated[NonNegative, Le((1 << (MAX_DEPTH + 1)) - 1), PYTHON_ONLY] = 0

    fit = "tree"
    trains_from_reward = False

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `spec`, with one leaf before the fit."""
        body, width = self.features.build(spec)
        return TreePolicy(self, spec, body, width)


class TreePolicy(NetworkPolicy):
    """Tree as arrays over its nodes, the root first, children after their parents.

    Attributes:
        feature: Index of the compared feature; -1 at a leaf.
        num_features: Number of features.
        threshold: Threshold; the left child is next where the feature is at most that.
        left: Index of the left child.
        right: Index of the right child.
        value: The head's parameters at a leaf, `[nodes, P]`.
    """

    feature: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, config: Tree, spec: PolicySpec, body: nn.Module, num_features: int) -> None:
        super().__init__(config, spec, body, 0, nn.Identity())
        self.normalizes_itself, self.num_features = config.features.normalizes_itself, num_features
        nodes = max(config.nodes, 1)
        # In floats, which policy files hold; exact up to 2^24.
        self.register_buffer("feature", torch.full((nodes,), -1.0))
        self.register_buffer("left", torch.zeros(nodes))
        self.register_buffer("right", torch.zeros(nodes))
        self.threshold = nn.Parameter(torch.zeros(nodes))
        self.value = nn.Parameter(torch.zeros(nodes, spec.head.num_params))

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for observations `[B, *obs_shape]`, with the compared features, and None as next state."""
        entries = self._entries(obs)
        x = self.hidden(entries)
        return self._legal(PolicyOutput(self.spec.head, self.leaf_values(x), features=x), entries), None

    def leaf_values(self, x: Tensor) -> Tensor:
        """Return the values `[B, P]` of the leaves of features `[B, N]`."""
        feature, left, right = self.feature.long(), self.left.long(), self.right.long()
        node = torch.zeros(len(x), dtype=torch.int64)
        for _ in range(self.config.max_depth):
            at = feature[node]
            goes_left = x.gather(1, at.clamp_min(0)[:, None]).squeeze(1) <= self.threshold[node]
            node = torch.where(at < 0, node, torch.where(goes_left, left[node], right[node]))
        return self.value[node]

    def require_valid(self, file: str) -> None:
        """Raise CorruptArtifactError unless the arrays make a tree."""
        nodes, width = len(self.feature), self.num_features
        at = torch.arange(nodes)
        inner = self.feature >= 0
        integers = all(torch.equal(array, array.round()) for array in (self.feature, self.left, self.right))
        ahead = [bool(((child[inner] > at[inner]) & (child[inner] < nodes)).all()) for child in (self.left, self.right)]
        if not integers or bool((self.feature >= width).any()) or not all(ahead):
            raise CorruptArtifactError(f"{file}: its arrays are no tree")
