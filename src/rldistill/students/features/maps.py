"""What linear students, mlps and trees are a function of: the observation itself, or fixed features of it."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rldistill.core.errors import ConfigError
from rldistill.core.heads import ActionHead
from rldistill.core.policy import Policy
from rldistill.core.spec import Obs, PolicySpec
from rldistill.policies.encoding import flat_width
from rldistill.policies.layers import DataDependentLayer, Flat, keep_scale, require_positive
from rldistill.policies.network import NetworkPolicy
from rldistill.students.cnn import require_pictures
from rldistill.students.features.screen import Basic, Bprost, Objects

CLIP_STD = 20.0
"""Standard deviations from its mean that a standardised feature may be."""
NOT_STORED = {"stored": False}
"""Metadata of fields that a saved student leaves out."""
FEED_FORWARD = ("actor", "mlp", "cnn", "impala")
"""Networks whose last hidden layer can be taken as features."""


@dataclass(frozen=True)
class Raw:
    """The flattened observation; pixels are standardised with one number for all."""

    normalizes_itself = False

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """The map, and how many features it gives."""
        return nn.Sequential(Flat()), flat_width(spec)


@dataclass(frozen=True)
class Standardised:
    """The flattened observation, each entry less its mean over the data and divided by its standard deviation.

    What is farther than 20 of these counts as 20. For pixels this weighs a rare flicker as much as a paddle; other
    observations are so for every student.
    """

    normalizes_itself = False

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """The map, and how many features it gives."""
        width = flat_width(spec)
        return nn.Sequential(Flat(), Standardiser(width)), width


@dataclass(frozen=True)
class Fourier:
    """sqrt(2 / D) cos(w . x / s + b), w normal, b uniform, D = `num_features`, x of n entries.

    A linear function of these stands for one in the space of a Gaussian kernel of width s = `bandwidth` sqrt(n)
    (Rahimi 2007).
    """

    num_features: int = 1024
    bandwidth: float = 1.0
    normalizes_itself = False

    def __post_init__(self) -> None:
        require_positive("num_features", [self.num_features])
        if not self.bandwidth > 0:
            raise ConfigError(f"bandwidth: expected a positive number, found {self.bandwidth}")

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """The map, with new random numbers, and how many features it gives."""
        width = flat_width(spec)
        waves = RandomFourierFeatures(width, self.num_features, self.bandwidth * math.sqrt(width))
        return nn.Sequential(Flat(), waves), self.num_features


@dataclass(frozen=True)
class RandomConv:
    """Convolutions with random weights that stay as they are, ReLU after each, the last flattened and standardised."""

    channels: tuple[int, ...] = (32, 64)
    kernels: tuple[int, ...] = (8, 4)
    strides: tuple[int, ...] = (4, 2)
    normalizes_itself = False

    def __post_init__(self) -> None:
        for name in ("channels", "kernels", "strides"):
            require_positive(name, getattr(self, name))
        if not len(self.channels) == len(self.kernels) == len(self.strides):
            raise ConfigError("channels, kernels, strides: expected one of each for every convolution")

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """The map, with new random weights, and how many features it gives."""
        depth, height, width = require_pictures("random_conv", spec)
        layers: list[nn.Module] = []
        for channels, kernel, stride in zip(self.channels, self.kernels, self.strides, strict=True):
            if kernel > min(height, width):
                raise ConfigError(f"kernels: {kernel} is larger than its input of {height}x{width}")
            layers += [nn.Conv2d(depth, channels, kernel, stride), nn.ReLU()]
            depth, height, width = channels, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        size = depth * height * width
        net = nn.Sequential(*layers, nn.Flatten(), Standardiser(size))
        keep_scale(net)
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        return net, size


@dataclass(frozen=True)
class TeacherFeatures:
    """Standardised last hidden layer of a frozen feed-forward network, by default the teacher's.

    A run file names the network by its path. `load` replaces the path by the network itself, so that building a
    student reads no file and imports no code. A saved student stores the network's sizes and weights.

    Attributes:
        policy: path of the network in a run file; empty for the teacher of the run.
        network: kind of the network: `actor`, `mlp`, `cnn` or `impala`.
        config: sizes of the network.
        head: action head of the network.
        source: the network itself; not stored, because its weights are part of the student.
    """

    policy: str = ""
    network: str = ""
    config: dict[str, Any] = field(default_factory=dict, hash=False)
    head: dict[str, Any] = field(default_factory=dict, hash=False)
    source: NetworkPolicy | None = field(default=None, repr=False, compare=False, metadata=NOT_STORED)
    normalizes_itself = True

    def load(self, network: Policy) -> TeacherFeatures:
        """Return these features with `network` in place of its path.

        Raises:
            ConfigError: the network is not feed-forward, or has no hidden layer that can be stored.
        """
        from rldistill.students.storage import NETWORKS

        name = self.policy or "the teacher"
        names = {kind: name for name, kind in NETWORKS.items()}
        if not isinstance(network, NetworkPolicy) or names.get(type(network.config)) not in FEED_FORWARD:
            raise ConfigError(f"features.policy: expected one of {', '.join(FEED_FORWARD)}; {name} is none")
        if network.initial_state(1) is not None:
            raise ConfigError(f"features.policy: {name} is recurrent; expected a feed-forward network")
        return TeacherFeatures(
            self.policy,
            names[type(network.config)],
            config_document(network.config),
            network.spec.head.to_json(),
            network,
        )

    def build(self, spec: PolicySpec) -> tuple[nn.Sequential, int]:
        """Return the frozen network and the number of features.

        The weights are those of `source`; without it they are left to `load_state_dict`.

        Raises:
            ConfigError: only a path is known.
        """
        from rldistill.students.storage import NETWORKS

        if self.source is not None:
            spec.require_same_input(self.source.spec, "the student", self.policy or "the teacher")
            network = copy.deepcopy(self.source)
            network.value_head = None  # not used by features
            return _frozen(network)
        if self.network not in FEED_FORWARD:
            raise ConfigError(
                "features.policy: the network is not loaded. In Python, pass TeacherFeatures().load(load_policy(path))."
            )
        kind: Any = NETWORKS[self.network]
        config = dict(self.config)
        if isinstance(own := config.get("features"), dict):
            config["features"] = FEATURES[own["type"]](**{key: own[key] for key in own if key != "type"})
        return _frozen(kind(**config).build(dataclasses.replace(spec, head=ActionHead.from_json(self.head))))


def _frozen(network: NetworkPolicy) -> tuple[nn.Sequential, int]:
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return nn.Sequential(LastHidden(network), Standardiser(network.width)), network.width


AnyFeatures = Raw | Standardised | Fourier | RandomConv | TeacherFeatures | Basic | Bprost | Objects
FEATURES: dict[str, type[AnyFeatures]] = {
    "raw": Raw,
    "standardised": Standardised,
    "fourier": Fourier,
    "random_conv": RandomConv,
    "teacher": TeacherFeatures,
    "basic": Basic,
    "bprost": Bprost,
    "objects": Objects,
}


def config_document(config: Any) -> dict[str, Any]:
    """Return the stored fields of a student as JSON values; features carry their type."""
    names = {kind: name for name, kind in FEATURES.items()}
    document: dict[str, Any] = {"type": names[type(config)]} if type(config) in names else {}
    for entry in dataclasses.fields(config):
        if entry.metadata != NOT_STORED:
            value = getattr(config, entry.name)
            document[entry.name] = config_document(value) if dataclasses.is_dataclass(value) else value
    return document


def standardised_body_of(student: Any, spec: PolicySpec) -> tuple[nn.Sequential, int]:
    """The same for a student that weighs features: pixels that objects are apart become standard deviations."""
    body, width = student.features.build(spec)
    return body.append(Standardiser(width)) if isinstance(student.features, Objects) else body, width


def linear_in_features(student: Any, spec: PolicySpec) -> NetworkPolicy:
    """A policy that is linear in `student.features`, with new weights."""
    body, width = standardised_body_of(student, spec)
    policy = NetworkPolicy(student, spec, body, width)
    policy.normalizes_itself, policy.num_frozen_layers, policy.num_features = (
        student.features.normalizes_itself,
        len(body),
        width,
    )
    return policy


class RandomFourierFeatures(nn.Module):
    """sqrt(2 / D) cos(x W / scale + b), W and b random and fixed."""

    def __init__(self, width: int, num_features: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(num_features, width) / scale)
        self.register_buffer("bias", 2 * math.pi * torch.rand(num_features))
        self.scale = math.sqrt(2 / num_features)

    def forward(self, x: Tensor) -> Tensor:
        turns: Tensor = nn.functional.linear(x, self.weight, self.bias)  # type: ignore[arg-type]
        return self.scale * turns.cos()


class Standardiser(DataDependentLayer):
    """(x - mean) / std of each entry, as a sample of the data has them, and at most FARTHEST from 0.

    The std of what never changes in the sample counts as 1, so that later it is told up to FARTHEST units away.

    What hardly moves in the sample may move later: a paddle of Pong whose column was once found 1,460 deviations from
    its mean would by itself decide what a linear student says, and what it learns.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit_features(self, x: Tensor) -> None:
        """Take mean and standard deviation of a sample, `[N, width]`."""
        std = x.std(0, correction=0)
        self.mean.copy_(x.mean(0))
        self.std.copy_(torch.where(std < 1e-6, 1.0, std))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = (x - self.mean) / self.std
        return scaled.clamp(-CLIP_STD, CLIP_STD)


class LastHidden(nn.Module):
    """What a network's output is linear in."""

    def __init__(self, network: NetworkPolicy) -> None:
        super().__init__()
        self.network = network

    def forward(self, obs: Obs) -> Tensor:
        features: Tensor = self.network(obs)[0].features
        return features
