"""Public Atari agents as teachers; docs/atari.md names their sources.

`actor_critic` and `dueling_dqn` are plain convolutional networks, so that students can use their last hidden layer as
features. `Recurrent` observes one 42x42 picture a step, of the view `Picture`, and remembers the rest.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rldistill import Cnn, ConfigError
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.io.state_dicts import load_weights, read_state_dict
from rldistill.policies.network import NetworkPolicy

OWN_FILE = "Use the file of an agent of this game."


def actor_critic(spec: PolicySpec, file: Path) -> NetworkPolicy:
    """Return the actor of a file whose layers, by alphabet, are three convolutions, a dense layer and the logits."""
    tensors = read_state_dict(file)
    actor = {name: tensors[name] for name in sorted(tensors) if "value" not in name and "critic" not in name}
    return _convolutional(Cnn((32, 64, 32), (8, 4, 3), (4, 2, 1), (512,)), spec, [*actor.values()], file)


def dueling_dqn(spec: PolicySpec, file: Path) -> NetworkPolicy:
    """Return the network of a file with an output `V` and outputs `A`, whose Q = V + A - mean(A) is one layer."""
    tensors = read_state_dict(file)
    if not {"A.bias", "A.weight", "V.bias", "V.weight"} <= {*tensors}:
        raise ConfigError(f"teacher: {file}: expected a dueling network with the layers A and V. {OWN_FILE}")
    values = [tensors[f"A.{part}"] - tensors[f"A.{part}"].mean(0) + tensors[f"V.{part}"] for part in ("bias", "weight")]
    inner = [tensors[name] for name in sorted(tensors) if name[0] not in "AV"]
    spec = dataclasses.replace(spec, head=spec.head.as_kind("q_values"))
    return _convolutional(Cnn((32, 64, 64), (8, 4, 3), (4, 2, 1), (200,)), spec, inner + values, file)


def _convolutional(config: Cnn, spec: PolicySpec, tensors: list[Tensor], file: Path) -> NetworkPolicy:
    """Return the network with these tensors of a file: the bias and the weight of each layer."""
    network = config.build(spec)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    parameters = [f"{name}.{part}" for name in layers for part in ("bias", "weight")]
    if len(tensors) != len(parameters):
        raise ConfigError(f"teacher: {file}: expected {len(layers)} layers that act, each with a bias. {OWN_FILE}")
    state = dict(zip(parameters, tensors, strict=True)) | dict(network.named_buffers())
    load_weights(network, state, f"teacher: {file} does not fit the network", OWN_FILE)
    return network


class Picture(gymnasium.ObservationWrapper[NDArray[np.float32], Any, NDArray[np.uint8]]):
    """Observation wrapper to the 160 rows of the game, as a gray image `[1, 42, 42]` from 0 to 1."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(0, 1, (1, 42, 42), np.float32)

    def observation(self, observation: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the gray image of a frame of 210x160x3."""
        picture = cv2.resize(cv2.resize(observation[34:194], (80, 80)), (42, 42))
        return picture.mean(2, dtype=np.float32)[None] / 255


class Recurrent(nn.Module):
    """Network of four convolutions, an LSTM of 256 and the logits of 18 actions.

    It standardizes each picture by a running mean and deviation of the pixels (decay 0.9999), which begin anew in each
    episode here.
    """

    size, decay = 256, 0.9999

    def __init__(self, spec: PolicySpec, file: Path) -> None:
        super().__init__()
        self.spec = spec
        self.convs = nn.ModuleList(nn.Conv2d(channels, 32, 3, 2, 1) for channels in (1, 32, 32, 32))
        self.lstm = nn.LSTMCell(288, self.size)
        self.value, self.logits = nn.Linear(self.size, 1), nn.Linear(self.size, spec.head.num_params)
        network = nn.ModuleList([*self.convs, self.lstm, self.value, self.logits])
        tensors = torch.load(file, weights_only=True, map_location="cpu")  # a list, in this order
        names = [name for name, _ in network.named_parameters()]
        if not isinstance(tensors, list) or len(tensors) != len(names):
            raise ConfigError(f"teacher: {file}: expected a list of {len(names)} tensors. {OWN_FILE}")
        state = dict(zip(names, tensors, strict=True))
        load_weights(network, state, f"teacher: {file} does not fit the network", OWN_FILE)

    def initial_state(self, batch_size: int) -> Tensor:
        """`[B, 515]`, zeros: those of the LSTM, the running mean and deviation, and the number of steps."""
        return torch.zeros(batch_size, 2 * self.size + 3)

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor]:
        """Return the logits and values of `[B, 1, 42, 42]`, and the new state."""
        assert isinstance(obs, Tensor)
        hidden, cell, mean, std, steps = (self.initial_state(len(obs)) if state is None else state).split(
            [self.size, self.size, 1, 1, 1], 1
        )
        pixels = obs.flatten(1)
        steps = steps + 1
        mean = self.decay * mean + (1 - self.decay) * pixels.mean(1, keepdim=True)
        std = self.decay * std + (1 - self.decay) * pixels.std(1, correction=0, keepdim=True)
        unbiased = 1 - self.decay**steps
        x = ((pixels - mean / unbiased) / (std / unbiased + 1e-8)).view_as(obs)
        for layer in self.convs:
            x = F.elu(layer(x))
        hidden, cell = self.lstm(x.flatten(1), (hidden, cell))
        output = PolicyOutput(self.spec.head, self.logits(hidden), self.value(hidden).squeeze(-1))
        return output, torch.cat([hidden, cell, mean, std, steps], 1)
