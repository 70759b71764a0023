"""Recurrent network with a GRU cell."""

import torch
from torch import Tensor, nn

from rldistill.core.fields import Positive, validated_dataclass
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.encoding import flat_width
from rldistill.policies.layers import (
    ActivationName,
    Flat,
    activation,
    convolutions,
    dense,
    keep_scale,
    require_convolutions,
    require_images,
)
from rldistill.policies.network import NetworkPolicy
from rldistill.students.student import Student


@validated_dataclass
class Gru(Student):
    """Dense layers, or convolutions on images, then a GRU cell (Cho 2014, arXiv 1406.1078), then a linear layer.

    For students that observe less than the state: masked velocities, single frames, another view than the teacher's.

    Attributes:
        size: Width of the state.
        hidden: Widths of the dense layers before the cell.
        channels: Channels of convolutions before these; none by default.
        kernels: Kernels of the convolutions.
        strides: Strides of the convolutions.
        window: Number of steps that a gradient reaches back; the state from before them is kept without a gradient.
        activation: Activation of the layers before the cell.
    """

    size: Positive = 64
    hidden: tuple[Positive, ...] = (64,)
    channels: tuple[Positive, ...] = ()
    kernels: tuple[Positive, ...] = ()
    strides: tuple[Positive, ...] = ()
    window: Positive = 32
    activation: ActivationName = "relu"

    recurrent = True

    def __post_init__(self) -> None:
        require_convolutions(self.channels, self.kernels, self.strides)

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `spec`, with new weights; raise ConfigError if a kernel is larger than its input."""
        act = activation(self.activation)
        layers: list[nn.Module] = []
        width = flat_width(spec)
        if self.channels:
            shape = require_images("a gru with convolutions", spec)
            layers, width = convolutions(shape, (self.channels, self.kernels, self.strides), act)
        hidden, width = dense(width, self.hidden, act)
        return GruPolicy(self, spec, nn.Sequential(*layers, Flat(), *hidden), width)


class GruPolicy(NetworkPolicy):
    """Policy that is `output(cell(body(obs), state))`; its state is `[B, size]`, zeros at first."""

    def __init__(self, config: Gru, spec: PolicySpec, body: nn.Module, width: int) -> None:
        super().__init__(config, spec, body, config.size)
        keep_scale(self, config.activation)
        self.cell = nn.GRUCell(width, config.size)
        self.window = config.window

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return zeros `[B, size]`."""
        return torch.zeros(batch_size, self.config.size, device=self.obs_mean.device)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for observations `[B, *obs_shape]`, and the next state; None is the initial state."""
        entries = self._entries(obs)
        x = self.body(self.standardized(entries))
        state = self.cell(x, self.initial_state(len(x)) if state is None else state)
        assert state is not None
        return self._legal(self.outputs(state), entries), state

    def unroll(self, obs: Tensor, starts: Tensor, state: Tensor) -> tuple[PolicyOutput, Tensor]:
        """Return the outputs for `[T, B, *obs_shape]` and the state at the end.

        Only the cell is applied step by step; the other layers take all steps at once.
        """
        steps, lanes = starts.shape
        entries = self._entries(obs.flatten(0, 1))
        x = self.body(self.standardized(entries)).reshape(steps, lanes, -1)
        states = []
        for step in range(steps):
            state = self.cell(x[step], state.masked_fill(starts[step, :, None], 0.0))
            states.append(state)
        output = self._legal(self.outputs(torch.cat(states)), entries)
        return output.map(lambda part: part.reshape(steps, lanes, *part.shape[1:])), state
