"""Acting network of a Stable-Baselines3 policy, built from plain numbers that can be stored."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Len
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.heads import NO_NOISE_LOG_STD, GaussianHead, SquashedGaussianHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.layers import ActivationName, activation, convolutions, dense
from rldistill.policies.network import LOG_STD_RANGE, NetworkPolicy

KERNELS, STRIDES = (8, 4, 3), (4, 2, 1)
Noise = Literal["none", "free", "learned", "state"]
MAX_LSTM_LAYERS = 100
"""Limit for files: building a billion layers would take forever."""


@validated_dataclass
class Actor:
    """Features of each entry of the observation, an optional LSTM, dense layers, an output.

    Attributes:
        images: Entries with the classic convolutions (an empty name for an observation without a dict); all others are
            flattened.
        channels: Channels of the three convolutions.
        features: Width of the dense ReLU layer behind them.
        lstm: Hidden size and number of layers; empty for none.
        hidden: Widths of the dense layers before the output.
        rescaled: Add a linear layer after the last activation (CrossQ's last batch renormalization with gSDE).
        critic: Widths of the dense layers from the same features to the value; None without a value.
        activation: Activation of the dense layers.
        noise: `none`; `free`, a log_std for each action; `learned`, a layer of its own; `state`, gSDE (Raffin 2020,
            arXiv 2005.05719): log_std = log(sum_f x_f^2 std_fa^2 + 1e-6) / 2, x the last hidden layer.
        expln: For gSDE, use e^x below 0 and log(1 + x) + 1 above as std, instead of e^x.
        clip_mean: Limit of the absolute value of means; 0 for none.
    """

    images: tuple[str, ...] = ()
    channels: Annotated[tuple[Positive, ...], Len(3, 3)] = (32, 64, 64)
    features: Positive = 512
    lstm: tuple[Positive, ...] = ()
    hidden: tuple[Positive, ...] = (64, 64)
    critic: tuple[Positive, ...] | None = None
    activation: ActivationName = "tanh"
    noise: Noise = "none"
    expln: bool = False
    clip_mean: float = 0.0
    rescaled: bool = False

    hidden_as_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.lstm) not in (0, 2) or max(self.lstm[1:], default=0) > MAX_LSTM_LAYERS:
            raise ConfigError(f"lstm: expected size and layers (at most {MAX_LSTM_LAYERS}), found {self.lstm}")

    def features_width(self, spec: PolicySpec) -> int:
        """Return the number of features of an observation."""
        return sum(self.features if key in self.images else part.width for key, part in spec.entries.items())

    def build(self, spec: PolicySpec) -> ActorPolicy:
        """Return the policy for `spec`, with new weights."""
        return ActorPolicy(self, spec)


class ActorPolicy(NetworkPolicy):
    """Network of an `Actor`. Its state is `[B, 2, layers, hidden]`: the LSTM's output and its cell."""

    def __init__(self, config: Actor, spec: PolicySpec) -> None:
        act = activation(config.activation)
        width = config.lstm[0] if config.lstm else config.features_width(spec)
        layers, last = dense(width, config.hidden, act)
        if config.rescaled:
            layers.append(nn.Linear(last, last))
        super().__init__(config, spec, nn.Sequential(*layers), last, _output(config, spec, last))
        self.extractors = nn.ModuleDict()
        for key in config.images:
            if key not in spec.entries or len(spec.entries[key].shape) != 3:
                raise ConfigError(f"images: {key!r} is no image among {', '.join(spec.entries) or 'the observation'}")
            depth, height, width = spec.entries[key].shape
            sizes = (config.channels, KERNELS, STRIDES)
            convs, size = convolutions((depth, height, width), sizes, nn.ReLU, "images")
            self.extractors[f"image_{key}"] = nn.Sequential(
                *convs, nn.Flatten(), nn.Linear(size, config.features), nn.ReLU()
            )
        self.lstm = nn.LSTM(config.features_width(spec), *config.lstm) if config.lstm else None
        self.critic: nn.Sequential | None = None
        if config.critic is not None:
            values, last = dense(config.features_width(spec), config.critic, act)
            self.critic = nn.Sequential(*values, nn.Linear(last, 1))

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return zeros, or None without an LSTM."""
        if self.lstm is None:
            return None
        return torch.zeros(batch_size, 2, self.lstm.num_layers, self.lstm.hidden_size, device=self.obs_mean.device)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output, with the value if there is a critic, for observations `[B, ...]`, and the next state."""
        entries = self._entries(obs)
        x = features = self._features(self.standardized(entries))
        if self.lstm is not None:
            if state is None:
                state = features.new_zeros(len(features), 2, self.lstm.num_layers, self.lstm.hidden_size)
            hidden, cell = (part.transpose(0, 1).contiguous() for part in state.unbind(1))
            x, (hidden, cell) = self.lstm(features[None], (hidden, cell))
            x, state = x[0], torch.stack([hidden.transpose(0, 1), cell.transpose(0, 1)], 1)
        last = self.body(x)
        value = self.critic(features).squeeze(-1) if self.critic is not None else None
        return self._legal(PolicyOutput(self.spec.head, self.output(last), value, last), entries), state

    def hidden(self, obs: Obs) -> Tensor:
        """Return the last hidden layer of a network without an LSTM, `[B, width]`."""
        hidden: Tensor = self.body(self._features(self.standardized(self._entries(obs))))
        return hidden

    def _features(self, standardized: Obs) -> Tensor:
        entries = {"": standardized} if isinstance(standardized, Tensor) else standardized
        parts = [
            self.extractors[f"image_{key}"](entry) if f"image_{key}" in self.extractors else entry.flatten(1)
            for key, entry in entries.items()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class NoisyOutput(nn.Module):
    """mean ++ log_std, with the `noise` of an `Actor`."""

    def __init__(self, config: Actor, width: int, actions: int) -> None:
        super().__init__()
        self.noise, self.expln, self.clip_mean = config.noise, config.expln, config.clip_mean
        self.mean = nn.Linear(width, actions)
        self.log_std: Any = None
        if config.noise == "learned":
            self.log_std = nn.Linear(width, actions)
        elif config.noise != "none":
            self.log_std = nn.Parameter(torch.zeros((actions,) if config.noise == "free" else (width, actions)))

    def forward(self, features: Tensor) -> Tensor:
        """Return mean ++ log_std, `[B, 2 A]`."""
        mean = self.mean(features)
        if self.noise == "none":
            log_std = torch.full_like(mean, NO_NOISE_LOG_STD)
        elif self.noise == "free":
            log_std = self.log_std.expand_as(mean)
        elif self.noise == "learned":
            log_std = self.log_std(features).clamp(*LOG_STD_RANGE)
        else:
            if self.clip_mean:
                mean = mean.clamp(-self.clip_mean, self.clip_mean)
            log_std = (features**2 @ self.feature_std() ** 2 + 1e-6).log() / 2
        return torch.cat([mean, log_std], -1)

    def feature_std(self) -> Tensor:
        """Return the standard deviations of noise that depends on the state, `[F, A]` for features and actions."""
        std: Tensor = self.log_std.exp()
        if self.expln:
            std = torch.where(self.log_std > 0, torch.log1p(self.log_std.clamp_min(0) + 1e-6) + 1, std)
        return std


def _output(config: Actor, spec: PolicySpec, width: int) -> nn.Module:
    head = spec.head
    if config.noise == "none" and not isinstance(head, SquashedGaussianHead):
        return nn.Linear(width, head.num_params)
    if not isinstance(head, GaussianHead):
        raise SpecMismatchError(f"noise: {config.noise} needs a Gaussian head, and this one is {head.kind}")
    return NoisyOutput(config, width, len(head.low))
