"""MuJoCo experts of github.com/berkeleydeeprlcourse/homework (MIT licence), whose tensors are in a safetensors file.

`berkeley:Expert@FILE` standardizes observations by their moments; then follow two tanh layers of 64 and a linear one.
"""

import torch
from torch import Tensor, nn

from rldistill import PolicySpec


class Affine(nn.Module):
    """Layer whose weights are `[inputs, outputs]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.W, self.b = (nn.Parameter(torch.zeros(rows, outputs)) for rows in (inputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W + self.b


class Expert(nn.Module):
    """Network for the observations and actions of an environment."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        size, actions = spec.obs_shape[0], len(spec.head.low)
        self.hidden0, self.hidden1, self.out = Affine(size, 64), Affine(64, 64), Affine(64, actions)
        for name, width in (("obs_mean", size), ("obs_meansq", size), ("logstd", actions)):  # logstd is not used
            self.register_buffer(name, torch.zeros(1, width))

    def forward(self, obs: Tensor) -> Tensor:
        std = (self.obs_meansq - self.obs_mean**2).clamp_min(0).sqrt() + 1e-6
        hidden = torch.tanh(self.hidden0((obs - self.obs_mean) / std))
        return self.out(torch.tanh(self.hidden1(hidden)))
