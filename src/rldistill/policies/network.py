"""Network of every student that learns by gradient: a body, a last linear layer, a head."""

from typing import Any

import torch
from torch import Tensor, nn

from rldistill.core.entries import split_parts
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import MASK, GaussianHead, SquashedGaussianHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.agent import Agent
from rldistill.policies.encoding import encode, moments_shape
from rldistill.policies.layers import DataDependentLayer

LOG_STD_RANGE = (-20.0, 2.0)


class NetworkPolicy(nn.Module):
    """Policy that is `output(body(obs))`.

    The log_std of a `gaussian` head is the same in all states (PPO), that of a `squashed_gaussian` one is not (SAC).

    Integers of known size become one-hot vectors and uint8 is divided by 255; then everything is standardized with
    `obs_mean` and `obs_std`, which are 0 and 1 until `standardize` sets them: one number for all pixels, one for each
    entry of other observations, flat for dicts.

    A recurrent network returns its state from `initial_state` and from `forward`. Its gradients reach back `window`
    steps.

    Attributes:
        config: Configuration of the student or of the actor.
        spec: Observations and actions.
        obs_clip: Limit of the absolute value of standardized entries, by name (an empty one without a dict).
        normalizes_itself: True if the body takes observations that are neither encoded nor standardized.
        num_frozen_layers: Layers at the start of the body that are not trained.
        num_features: Number of values that the frozen layers return.
        width: Width of the last hidden layer; 0 if there is none.
    """

    obs_mean: Tensor
    obs_std: Tensor
    window = 32

    def __init__(
        self, config: Any, spec: PolicySpec, body: nn.Module, width: int, output: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config, self.spec, self.body = config, spec, body
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

    def require_storable(self) -> None:
        """Raise ConfigError if a file cannot hold the policy; any can by default."""

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return None; a recurrent network returns the state at the start of an episode, `[B, ...]`."""
        return None

    @property
    def recurrent(self) -> bool:
        """True if the policy has a state."""
        return self.initial_state(1) is not None

    def act(self, obs: Any) -> Any:
        """Return the most likely action for one observation; raise ConfigError if the policy is recurrent."""
        return self._agent().act(obs)

    def act_batch(self, obs: Any) -> Any:
        """Return the most likely actions `[B, ...]` for a batch of observations; see `act`."""
        return self._agent().act_batch(obs)

    def _agent(self) -> Agent:
        if self.recurrent:
            raise ConfigError("act: the policy is recurrent, so it needs the state of its episode. Use Agent(policy).")
        return Agent(self)

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and the standard deviation of observations, both of the shape of `obs_mean`."""
        self.obs_mean.copy_(mean)
        self.obs_std.copy_(std)

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @property
    def has_value(self) -> bool:
        """True if the policy has a value."""
        return self.value_head is not None

    def add_value(self, device: str = "cpu") -> None:
        """Add a value: a linear function of the last hidden layer, 0 at first."""
        self._require_hidden_layer("a value")
        self.value_head = nn.Linear(self.width, 1, device=device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def add_features(self, size: int) -> None:
        """Let the features be a linear function `[B, size]` of the last hidden layer, until the policy is saved."""
        self._require_hidden_layer("features of its own")
        self.feature_head = nn.Linear(self.width, size)

    def _require_hidden_layer(self, target: str) -> None:
        if not self.width:
            raise ConfigError(
                f"a {type(self.config).__name__.lower()} student cannot learn {target}. Leave that loss out."
            )

    def fit_features(self, obs: Tensor) -> None:
        """Fit the layers that depend on the data to a sample of observations `[N, *obs_shape]`."""
        layers = [*self.body] if isinstance(self.body, nn.Sequential) else []
        if not any(isinstance(layer, DataDependentLayer) for layer in layers):
            return
        with torch.no_grad():
            x: Any = self.standardized(self._entries(obs))
            for layer in layers:
                if isinstance(layer, DataDependentLayer):
                    layer.fit_features(x)
                x = layer(x)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for observations `[B, *obs_shape]`, or for a dict of such, and the next state or None."""
        entries = self._entries(obs)
        return self._legal(self.outputs(self.body(self.standardized(entries))), entries), None

    def unroll(self, obs: Tensor, starts: Tensor, state: Tensor) -> tuple[PolicyOutput, Tensor]:
        """Return the outputs of a recurrent policy for B sequences of T steps, and the state at the end.

        Args:
            obs: Observations `[T, B, *obs_shape]`; each sequence may hold several episodes.
            starts: Starts of episodes, `[T, B]`.
            state: State before the first step, `[B, ...]`.
        """
        initial = self.initial_state(starts.shape[1])
        assert initial is not None
        initial, outputs = initial.to(state), []
        for step_obs, step_starts in zip(obs, starts, strict=True):
            begins = step_starts.view(-1, *[1] * (state.ndim - 1))
            output, after = self(step_obs, torch.where(begins, initial, state))
            if after is None:
                raise ConfigError(
                    f"students: {type(self.config).__name__} has an initial state but returns None as next state. "
                    "Return (output, state) from forward."
                )
            state = after
            outputs.append(output)
        columns = {
            name: [getattr(output, name) for output in outputs] for name in ("params", "value", "features", "mask")
        }
        stacked = {name: torch.stack(parts) for name, parts in columns.items() if parts[0] is not None}
        return PolicyOutput(outputs[0].head, **stacked), state

    def hidden(self, obs: Obs) -> Tensor:
        """Return the last hidden layer of a feed-forward policy, `[B, width]`."""
        hidden: Tensor = self.body(self.standardized(self._entries(obs)))
        return hidden

    def frozen_features(self, obs: Obs) -> Tensor:
        """Return the values of the frozen layers for observations, `[B, num_features]`."""
        assert isinstance(self.body, nn.Sequential)
        features: Tensor = self.body[: self.num_frozen_layers](self.standardized(self._entries(obs)))
        return features

    def from_frozen_features(self, features: Tensor) -> PolicyOutput:
        """Return the output for `frozen_features` of observations without a mask."""
        assert isinstance(self.body, nn.Sequential)
        return self.outputs(self.body[self.num_frozen_layers :](features))

    def outputs(self, hidden: Tensor) -> PolicyOutput:
        """Return the output for the last hidden layer `[B, width]`, with no action ruled out."""
        params: Tensor = self.output(hidden).float()  # losses compute in float32, whatever the layers do
        value = None if self.value_head is None else self.value_head(hidden).squeeze(-1).float()
        features = (hidden if self.feature_head is None else self.feature_head(hidden)).float()
        if self.log_std is not None:
            params = torch.cat([params, self.log_std.expand_as(params)], -1)
        if isinstance(self.spec.head, SquashedGaussianHead):
            mean, log_std = params.chunk(2, -1)
            params = torch.cat([mean, log_std.clamp(*LOG_STD_RANGE)], -1)
        return PolicyOutput(self.spec.head, params, value, features)

    def _entries(self, obs: Obs) -> Obs:
        return split_parts(obs, self.spec) if self.spec.parts else obs

    def _legal(self, output: PolicyOutput, entries: Obs) -> PolicyOutput:
        return output if isinstance(entries, Tensor) or MASK not in entries else output.masked(entries[MASK])

    def standardized(self, obs: Obs) -> Obs:
        """Return the input of the body in the dtype of the policy, a dict where the observation is one."""
        if self.normalizes_itself:
            return obs
        scaled = self.scaled(obs)
        clipped = {"": scaled} if isinstance(scaled, Tensor) else {**scaled}
        for key, limit in self.obs_clip.items():
            clipped[key] = clipped[key].clamp(-limit, limit)
        return clipped[""] if isinstance(scaled, Tensor) else clipped

    def scaled(self, obs: Obs) -> Obs:
        """Return standardized observations before `obs_clip`; raise SpecMismatchError for an unexpected dict."""
        if not self.spec.parts:
            if not isinstance(obs, Tensor):
                raise SpecMismatchError(f"the policy takes one tensor, not a dict of {', '.join(obs)}")
            if obs.dtype == torch.uint8 and not self.spec.nvec:
                # Converted first and changed in place: operations on bytes and floats at once, or another array of that
                # size, are slower, and for a small student this is much of a step. In autocast, bytes are exact.
                shift, scale = -self.obs_mean / self.obs_std, 1 / (255 * self.obs_std)
                dtype = self.obs_mean.dtype
                if not obs.is_meta and torch.is_autocast_enabled(obs.device.type):  # a meta device knows no autocast
                    dtype = torch.get_autocast_dtype(obs.device.type)
                return obs.to(dtype).mul_(scale).add_(shift)
            return ((encode(obs, self.spec.entries[""]) - self.obs_mean) / self.obs_std).to(self.obs_mean.dtype)
        entries = self._entries(obs)
        assert not isinstance(entries, Tensor)
        scaled = {}
        offset = 0
        for key, part in self.spec.parts:
            entry = encode(entries[key], part)
            own = slice(offset, offset := offset + part.width)
            rows = entry.reshape(len(entry), -1)  # numbers of shape () have no second dimension
            standard = (rows - self.obs_mean[own]) / self.obs_std[own]
            scaled[key] = standard.view(entry.shape).to(self.obs_mean.dtype)
        return scaled
