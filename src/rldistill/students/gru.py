"""A recurrent network: it remembers what it has seen of an episode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.encoding import flat_width
from rldistill.policies.layers import Flat, activation, dense, keep_scale, require_positive
from rldistill.policies.network import NetworkPolicy
from rldistill.students.cnn import require_pictures


@dataclass(frozen=True)
class Gru:
    """Dense layers, or convolutions on pictures, then a GRU cell (Cho 2014, arXiv 1406.1078), then a linear layer.

    For students that see less than the state: masked velocities, single frames, a teacher with a view of its own.

    Attributes:
        size: numbers that are remembered.
        hidden: widths of the dense layers before the cell.
        channels, kernels, strides: of convolutions before these; none by default.
        window: steps that a gradient reaches back; what is remembered from before them is kept, without one.
        activation: of the layers before the cell.
    """

    size: int = 64
    hidden: tuple[int, ...] = (64,)
    channels: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    window: int = 32
    activation: str = "relu"

    def __post_init__(self) -> None:
        require_positive("size, window", [self.size, self.window])
        for name in ("hidden", "channels", "kernels", "strides"):
            require_positive(name, getattr(self, name))
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ConfigError("channels, kernels, strides: expected one of each for every convolution")
        activation(self.activation, "activation")

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """The student for `spec`, with new weights; raises ConfigError if a kernel is larger than its input."""
        act = activation(self.activation, "activation")
        layers: list[nn.Module] = []
        width = flat_width(spec)
        if self.channels:
            depth, height, length = require_pictures("a gru with convolutions", spec)
            for channels, kernel, stride in zip(self.channels, self.kernels, self.strides, strict=True):
                if kernel > min(height, length):
                    raise ConfigError(f"kernels: {kernel} is larger than its input of {height}x{length}")
                layers += [nn.Conv2d(depth, channels, kernel, stride), act()]
                depth, height, length = channels, (height - kernel) // stride + 1, (length - kernel) // stride + 1
            width = depth * height * length
        before, width = dense(width, self.hidden, act)
        return GruPolicy(self, spec, nn.Sequential(*layers, Flat(), *before), width)


class GruPolicy(NetworkPolicy):
    """A policy that is `output(cell(body(obs), state))`; its state is `[B, size]`, zeros at first."""

    def __init__(self, config: Gru, spec: PolicySpec, body: nn.Module, width: int) -> None:
        super().__init__(config, spec, body, config.size)
        keep_scale(self, config.activation)
        self.cell = nn.GRUCell(width, config.size)

    def initial_state(self, batch_size: int) -> Tensor | None:
        """`[B, size]`, zeros."""
        return torch.zeros(batch_size, self.config.size)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Observations `[B, *obs_shape]` and what is remembered, zeros if nothing is given."""
        entries = self._entries(obs)
        seen = self.body(self.standardised(entries))
        state = self.cell(seen, torch.zeros(len(seen), self.config.size).to(seen) if state is None else state)
        assert state is not None
        return self._legal(self._said(state), entries), state

    def unroll(self, obs: Tensor, starts: Tensor, state: Tensor) -> tuple[PolicyOutput, Tensor]:
        """What it says of `[T, B, *obs_shape]`, and what it remembers at the end.

        Args:
            obs: observations of B episodes, one after the other in each of B lanes.
            starts: `[T, B]`, whether an episode begins there, so that nothing is remembered.
            state: `[B, size]`, what is remembered at first.
        """
        steps, lanes = starts.shape
        entries = self._entries(obs.flatten(0, 1))
        seen = self.body(self.standardised(entries)).reshape(steps, lanes, -1)
        states = []
        for step in range(steps):
            state = self.cell(seen[step], state.masked_fill(starts[step, :, None], 0.0))
            states.append(state)
        output = self._legal(self._said(torch.cat(states)), entries)
        params, value, features, mask = (
            None if part is None else part.reshape(steps, lanes, *part.shape[1:])
            for part in (output.params, output.value, output.features, output.mask)
        )
        assert params is not None
        return PolicyOutput(output.head, params, value, features, mask), state
