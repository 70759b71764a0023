"""The network behind every student that learns by gradient: a body, a last linear layer, a head."""

# ruff: noqa: F722 (shapes in annotations are not Python)
# ruff: noqa: F722 (shapes in annotations are not Python)
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import MASK, GaussianHead, SquashedGaussianHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec

if TYPE_CHECKING:
    from jaxtyping import Float
from rldistill.policies.encoding import _encoded, moments_shape, split_parts
from rldistill.policies.layers import DataDependentLayer

LOG_STD_RANGE = (-20.0, 2.0)


class NetworkPolicy(nn.Module):
    """A policy that is `output(body(obs))`.

    The log_std of a `gaussian` head is the same in all states (PPO), that of a `squashed_gaussian` one is not (SAC).

    Integers of known size become one-hot vectors and uint8 is divided by 255; then everything is standardised with
    `obs_mean` and `obs_std`, which are 0 and 1 until `standardise` sets them: one number for all pixels, one for each
    entry of other observations, flat for dicts. What `obs_clip` names (an empty name for an observation that is no
    dict) is clipped to +- its number. A policy that takes observations `normalizes_itself` does none of this.

    The first `num_frozen_layers` layers of the body are not trained; they give `num_features` numbers.
    """

    obs_mean: Tensor
    obs_std: Tensor

    def __init__(
        self, config: Any, spec: PolicySpec, body: nn.Module, width: int, output: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config, self._spec, self.body = config, spec, body
        gaussian = type(spec.head) is GaussianHead and output is None
        self.output = output or nn.Linear(width, spec.head.num_params // (2 if gaussian else 1))
        self.log_std = nn.Parameter(torch.zeros(spec.head.num_params // 2)) if gaussian else None
        self.register_buffer("obs_mean", torch.zeros(moments_shape(spec)))
        self.register_buffer("obs_std", torch.ones(moments_shape(spec)))
        self.obs_clip: dict[str, float] = {}
        self.normalizes_itself = False
        self.num_frozen_layers = self.num_features = 0
        self.width = width
        self.value_head: nn.Linear | None = None
        self.feature_head: nn.Linear | None = None

    @property
    def spec(self) -> PolicySpec:
        """What the policy takes and gives."""
        return self._spec

    def respec(self, spec: PolicySpec) -> None:
        """Take another spec of the same shapes, such as one with another view."""
        self._spec = spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """None: a feed-forward network has no state."""
        return None

    def standardise(self, mean: Float[Tensor, "*obs"], std: Float[Tensor, "*obs"]) -> None:
        """Subtract `mean` from observations and divide them by `std`, both of the shape that `obs_mean` has."""
        self.obs_mean.copy_(mean)
        self.obs_std.copy_(std)

    def add_value(self) -> None:
        """Say a value, too: a linear function of the last hidden layer, 0 at first."""
        self._require_hidden_layer("a value")
        self.value_head = nn.Linear(self.width, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def add_features(self, size: int) -> None:
        """Let the features be a linear function, `[B, size]`, of the last hidden layer, until the policy is saved."""
        self._require_hidden_layer("features of its own")
        self.feature_head = nn.Linear(self.width, size)

    def _require_hidden_layer(self, what: str) -> None:
        if not self.width:
            raise ConfigError(
                f"a {type(self.config).__name__.lower()} student cannot learn {what}: leave that loss out"
            )

    def fit_features(self, obs: Tensor) -> None:
        """Let the fixed features that depend on the data see a sample of it, `[N, *obs_shape]`, before training."""
        layers = [*self.body] if isinstance(self.body, nn.Sequential) else []
        if not any(isinstance(layer, DataDependentLayer) for layer in layers):
            return
        with torch.no_grad():
            x: Any = self.standardised(self._entries(obs))
            for layer in layers:
                if isinstance(layer, DataDependentLayer):
                    layer.fit_features(x)
                x = layer(x)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Observations `[B, *obs_shape]`, or a dict of such, to the head's parameters `[B, P]`."""
        entries = self._entries(obs)
        features = self.body(self.standardised(entries))
        return self._legal(self._said(features), entries), None

    def fixed(self, obs: Obs) -> Tensor:
        """What the layers that are not trained make of observations, `[B, N]`."""
        assert isinstance(self.body, nn.Sequential)
        features: Tensor = self.body[: self.num_frozen_layers](self.standardised(self._entries(obs)))
        return features

    def after_fixed(self, features: Tensor) -> PolicyOutput:
        """What the policy says, given what `fixed` made of observations without a mask."""
        assert isinstance(self.body, nn.Sequential)
        return self._said(self.body[self.num_frozen_layers :](features))

    def numbers(self, obs: Obs) -> Tensor:
        """The head's parameters, `[B, P]`, with no action ruled out."""
        return self._params(self.body(self.standardised(self._entries(obs))))

    def _said(self, hidden: Tensor) -> PolicyOutput:
        """What follows from the last hidden layer."""
        value = None if self.value_head is None else self.value_head(hidden).squeeze(-1)
        features = hidden if self.feature_head is None else self.feature_head(hidden)
        return PolicyOutput(self._spec.head, self._params(hidden), value, features)

    def _params(self, features: Tensor) -> Tensor:
        """The head's parameters, `[B, P]`, of the last hidden layer."""
        params: Tensor = self.output(features)
        if self.log_std is not None:
            params = torch.cat([params, self.log_std.expand_as(params)], -1)
        if isinstance(self._spec.head, SquashedGaussianHead):
            mean, log_std = params.chunk(2, -1)
            params = torch.cat([mean, log_std.clamp(*LOG_STD_RANGE)], -1)
        return params

    def _entries(self, obs: Obs) -> Obs:
        return split_parts(obs, self._spec) if self._spec.parts and isinstance(obs, Tensor) else obs

    def _legal(self, output: PolicyOutput, entries: Obs) -> PolicyOutput:
        return output if isinstance(entries, Tensor) or MASK not in entries else output.masked(entries[MASK])

    def standardised(self, obs: Obs) -> Obs:
        """What the first layer is fed: float32, a dict where the observation is one."""
        if self.normalizes_itself:
            return obs
        scaled = self.scaled(obs)
        if isinstance(scaled, Tensor):
            return self._clipped(scaled, "")
        return {key: self._clipped(entry, key) for key, entry in scaled.items()}

    def scaled(self, obs: Obs) -> Obs:
        """The same before `obs_clip`: standard deviations from the mean, integers of known size one-hot.

        Raises:
            SpecMismatchError: a dict, for a policy that takes one tensor.
        """
        if not self._spec.parts:
            if not isinstance(obs, Tensor):
                raise SpecMismatchError(f"the policy takes one tensor, not a dict of {', '.join(obs)}")
            return self._scaled(obs)
        entries = self._entries(obs)
        assert not isinstance(entries, Tensor)
        scaled = {}
        at = 0
        for key, part in self._spec.parts:
            entry = _encoded(entries[key], part)
            shape = entry.shape
            of_key = slice(at, at := at + part.width)
            entry = (entry.flatten(1) - self.obs_mean[of_key]) / self.obs_std[of_key]
            scaled[key] = entry.view(shape).float()
        return scaled

    def _scaled(self, obs: Tensor) -> Tensor:
        if self._spec.nvec:
            return (_encoded(obs, self._spec.entries[""]) - self.obs_mean) / self.obs_std
        if obs.dtype == torch.uint8:
            # Converted first: an operation on bytes and floats at once is slower, and for a small student this is much
            # of a step.
            return torch.addcmul(-self.obs_mean / self.obs_std, obs.float(), 1 / (255 * self.obs_std))
        return ((obs - self.obs_mean) / self.obs_std).float()

    def _clipped(self, scaled: Tensor, key: str) -> Tensor:
        return scaled.clamp(-self.obs_clip[key], self.obs_clip[key]) if key in self.obs_clip else scaled
