"""The acting network of a Stable-Baselines3 policy, as plain numbers that it can be stored with and built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.heads import GaussianHead, SquashedGaussianHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.layers import activation, dense, require_positive
from rldistill.policies.network import NetworkPolicy

KERNELS, STRIDES = (8, 4, 3), (4, 2, 1)
Noise = Literal["none", "free", "learned", "state"]
MOST_LAYERS = 100
"""Of an LSTM; a file that names a billion would keep its reader busy for ever."""
STILL = -20.0
"""The log_std of a policy without noise whose actions are squashed all the same."""


@dataclass(frozen=True)
class Actor:
    """Features of each entry of the observation, an LSTM if there is one, dense layers, an output.

    Attributes:
        images: the entries that are seen through the classic convolutions (an empty name for an observation that is
            no dict); all others are flattened.
        channels: of the three convolutions.
        features: width of the dense ReLU layer behind them.
        lstm: hidden size and number of layers; empty for none.
        hidden: widths of the dense layers that lead to the output.
        critic: widths of those that lead from the same features to the value; none if there is no value.
        activation: of the dense layers.
        noise: `none`; `free`, a log_std for each action; `learned`, a layer of its own; `state`, gSDE (Raffin 2020,
            arXiv 2005.05719): log_std = log(sum_f x_f^2 std_fa^2 + 1e-6) / 2, x the last hidden layer.
        expln: for gSDE, whether a std is e^x below 0 and log(1 + x) + 1 above, instead of e^x.
        clip_mean: means are clipped to +- this; 0 is never.
    """

    images: tuple[str, ...] = ()
    channels: tuple[int, ...] = (32, 64, 64)
    features: int = 512
    lstm: tuple[int, ...] = ()
    hidden: tuple[int, ...] = (64, 64)
    critic: tuple[int, ...] | None = None
    activation: str = "tanh"
    noise: Noise = "none"
    expln: bool = False
    clip_mean: float = 0.0

    def __post_init__(self) -> None:
        for name in ("channels", "hidden", "lstm"):
            require_positive(name, getattr(self, name))
        require_positive("features", (self.features,))
        require_positive("critic", self.critic or ())
        activation(self.activation, "activation")
        if self.noise not in ("none", "free", "learned", "state"):
            raise ConfigError(f"noise: expected none, free, learned or state, found {self.noise!r}")
        if len(self.lstm) not in (0, 2) or len(self.channels) != len(KERNELS):
            raise ConfigError("lstm: expected hidden size and layers; channels: expected three")
        if self.lstm and self.lstm[1] > MOST_LAYERS:
            raise ConfigError(f"lstm: expected at most {MOST_LAYERS} layers, found {self.lstm[1]}")

    def build(self, spec: PolicySpec) -> ActorPolicy:
        """The policy for `spec`, with new weights."""
        return ActorPolicy(self, spec)


class ActorPolicy(NetworkPolicy):
    """What an `Actor` describes. Its state is `[B, 2, layers, hidden]`: the LSTM's output and its cell."""

    def __init__(self, config: Actor, spec: PolicySpec) -> None:
        act = activation(config.activation, "activation")
        width = config.lstm[0] if config.lstm else _features_width(config, spec)
        layers, last = dense(width, config.hidden, act)
        super().__init__(config, spec, nn.Sequential(*layers), last, _output(config, spec, last))
        self.extractors = nn.ModuleDict({f"image_{key}": _convolutions(config, spec, key) for key in config.images})
        self.lstm = nn.LSTM(_features_width(config, spec), *config.lstm) if config.lstm else None
        self.critic: nn.Sequential | None = None
        if config.critic is not None:
            values, last = dense(_features_width(config, spec), config.critic, act)
            self.critic = nn.Sequential(*values, nn.Linear(last, 1))

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Zeros, or None where there is no LSTM."""
        if self.lstm is None:
            return None
        return torch.zeros(batch_size, 2, self.lstm.num_layers, self.lstm.hidden_size, device=self.obs_mean.device)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Observations `[B, ...]` to the head's parameters `[B, P]`, the value `[B]` and the next state."""
        entries = self._entries(obs)
        seen = features = self._features(self.standardised(entries))
        if self.lstm is not None:
            if state is None:
                state = features.new_zeros(len(features), 2, self.lstm.num_layers, self.lstm.hidden_size)
            hidden, cell = (part.transpose(0, 1).contiguous() for part in state.unbind(1))
            seen, (hidden, cell) = self.lstm(features[None], (hidden, cell))
            seen, state = seen[0], torch.stack([hidden.transpose(0, 1), cell.transpose(0, 1)], 1)
        last = self.body(seen)
        value = self.critic(features).squeeze(-1) if self.critic is not None else None
        return self._legal(PolicyOutput(self.spec.head, self.output(last), value, last), entries), state

    def _features(self, standardised: Obs) -> Tensor:
        entries = {"": standardised} if isinstance(standardised, Tensor) else standardised
        parts = [
            self.extractors[f"image_{key}"](entry) if f"image_{key}" in self.extractors else entry.flatten(1)
            for key, entry in entries.items()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class FreeNoise(nn.Module):
    """mean ++ log_std, the latter the same in all states."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.mean = nn.Linear(width, actions)
        self.log_std = nn.Parameter(torch.zeros(actions))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.mean(features), self.log_std.expand(len(features), -1)], -1)


class LearnedNoise(nn.Module):
    """mean ++ log_std, each a linear function of the state."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Linear(width, actions), nn.Linear(width, actions)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.mean(features), self.log_std(features).clamp(-20, 2)], -1)


class StateNoise(nn.Module):
    """mean ++ log_std of gSDE, as `Actor` gives it."""

    def __init__(self, width: int, actions: int, expln: bool, clip_mean: float) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Linear(width, actions), nn.Parameter(torch.zeros(width, actions))
        self.expln, self.clip_mean = expln, clip_mean

    def forward(self, features: Tensor) -> Tensor:
        std = self.log_std.exp()
        if self.expln:
            std = torch.where(self.log_std > 0, torch.log1p(self.log_std.clamp_min(0) + 1e-6) + 1, std)
        mean = self.mean(features)
        if self.clip_mean:
            mean = mean.clamp(-self.clip_mean, self.clip_mean)
        return torch.cat([mean, (features**2 @ std**2 + 1e-6).log() / 2], -1)


class Still(nn.Module):
    """mean ++ a log_std that is as good as none, for actions that are squashed without noise."""

    def __init__(self, width: int, actions: int) -> None:
        super().__init__()
        self.mean = nn.Linear(width, actions)

    def forward(self, features: Tensor) -> Tensor:
        mean = self.mean(features)
        return torch.cat([mean, torch.full_like(mean, STILL)], -1)


def _output(config: Actor, spec: PolicySpec, width: int) -> nn.Module:
    head, actions = spec.head, len(spec.head.low)
    if config.noise == "none":
        return Still(width, actions) if isinstance(head, SquashedGaussianHead) else nn.Linear(width, head.num_params)
    if not isinstance(head, GaussianHead):
        raise SpecMismatchError(f"noise: {config.noise} needs a Gaussian head, and this one is {head.kind}")
    if config.noise == "state":
        return StateNoise(width, actions, config.expln, config.clip_mean)
    return (FreeNoise if config.noise == "free" else LearnedNoise)(width, actions)


def _convolutions(config: Actor, spec: PolicySpec, key: str) -> nn.Module:
    depth, height, width = _image_shape(spec, key)
    layers: list[nn.Module] = []
    for channels, kernel, stride in zip(config.channels, KERNELS, STRIDES, strict=True):
        if kernel > min(height, width):
            raise ConfigError(f"images: {key or 'the observation'} is too small for the classic convolutions")
        layers += [nn.Conv2d(depth, channels, kernel, stride), nn.ReLU()]
        depth, height, width = channels, (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(depth * height * width, config.features), nn.ReLU())


def _features_width(config: Actor, spec: PolicySpec) -> int:
    return sum(config.features if key in config.images else part.width for key, part in spec.entries.items())


def _image_shape(spec: PolicySpec, key: str) -> tuple[int, ...]:
    if key not in spec.entries or len(spec.entries[key].shape) != 3:
        raise ConfigError(f"images: {key!r} is no image among {', '.join(spec.entries) or 'the observation'}")
    return spec.entries[key].shape
