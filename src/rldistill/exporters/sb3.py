"""Policies as zips of Stable-Baselines3, for fine-tuning there."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rldistill.core.entries import join_parts
from rldistill.core.heads import (
    MASK,
    ActionHead,
    BernoulliHead,
    CategoricalHead,
    GaussianHead,
    MultiCategoricalHead,
    QValuesHead,
    SquashedGaussianHead,
)
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.envs.entries import CONTAINERS, FlatDict
from rldistill.envs.make import make_env
from rldistill.exporters.program import ExportError
from rldistill.exporters.runtimes import Answer, Arrays, ExportedPolicy, Interface, StateArray
from rldistill.io.atomic import write_atomic
from rldistill.policies.layers import Flat, channels_last, has_arguments
from rldistill.policies.network import NetworkPolicy
from rldistill.policies.wrappers import ChannelsLastPolicy
from rldistill.students.multi_input import EntriesLayer
from rldistill.teachers.sb3.load import load_sb3
from rldistill.teachers.sb3.spaces import scaled_images

PPO_HEADS = (CategoricalHead, MultiCategoricalHead, BernoulliHead, GaussianHead)
OTHER_CONVOLUTIONS = "sb3: its convolutions differ from those of SB3's NatureCNN (channels 32, 64, 64"
NATURE_CNN = ((32, 64, 64), (8, 4, 3), (4, 2, 1), (512,))
"""Channels, kernels, strides and dense layer of the only convolutions that every installation of SB3 has."""


def write_sb3(policy: Policy, env: EnvConfig, path: Path) -> None:
    """Write a zip that `PPO.load`, `DQN.load` or `SAC.load` reads.

    The standardization of observations is part of the first layer.

    Raises:
        ExportError: The policy has a layer that SB3's own policies do not have.
    """
    layers = _copied_layers(policy, env)
    assert isinstance(policy, NetworkPolicy)
    hidden = [layer.out_features for layer in layers.dense[:-1]]
    algorithm = algorithm_of(policy.spec.head)
    arch: Any = {"DQN": hidden, "SAC": {"pi": hidden, "qf": [256, 256]}, "PPO": {"pi": hidden, "vf": hidden}}[algorithm]
    options = {"net_arch": arch, "activation_fn": layers.activation}
    kind = "MultiInputPolicy" if policy.spec.parts else "CnnPolicy" if layers.extractor else "MlpPolicy"
    if policy.spec.parts and layers.extractor:
        options["features_extractor_kwargs"] = {"cnn_output_dim": policy.config.picture_features}
    model = _new_model(algorithm, env, options, kind)
    _copy_layers(algorithm, model.policy, layers, policy)
    write_atomic(path, lambda temporary: _save(model, temporary))


def algorithm_of(head: ActionHead) -> str:
    """Return the algorithm of SB3 for a head; raise ExportError if none has it."""
    if isinstance(head, QValuesHead):
        return "DQN"
    if isinstance(head, SquashedGaussianHead):
        return "SAC"
    if isinstance(head, PPO_HEADS):
        return "PPO"
    raise ExportError(f"sb3: no algorithm of SB3 has a {head.kind} head. Use onnx.")


@dataclass(frozen=True)
class _Layers:
    """Layers of a policy, copied, the first with the standardization in it.

    `extractor` are convolutions with their dense layers, and `dense` the layers behind them with the output.
    """

    extractor: list[Any]
    dense: list[Any]
    activation: type[nn.Module]


def _copied_layers(policy: Policy, env: EnvConfig) -> _Layers:
    if type(policy) is not NetworkPolicy or not isinstance(policy.body, nn.Sequential):
        raise ExportError(
            f"sb3: SB3 has no {type(policy).__name__}; only linear, mlp, cnn and multi_input students fit. Use onnx."
        )
    if policy.obs_clip:
        raise ExportError("sb3: standardized observations are clipped, which no layer of SB3 does. Use onnx.")
    body = [copy.deepcopy(layer) for layer in policy.body if not isinstance(layer, Flat | nn.Flatten | EntriesLayer)]
    allowed = nn.Linear, nn.Conv2d
    activations = {type(layer) for layer in body if not isinstance(layer, allowed)}
    if policy.num_frozen_layers > 1 or len(activations) > 1:
        raise ExportError(f"sb3: SB3 has no {type(policy.config.features).__name__} features. Use onnx.")
    if any(has_arguments(layer) for layer in body if not isinstance(layer, allowed)):
        raise ExportError("sb3: an activation with arguments or weights is not exported. Use onnx.")
    layers: list[Any] = [*(layer for layer in body if isinstance(layer, allowed)), copy.deepcopy(policy.output)]
    activation, config = next(iter(activations), nn.ReLU), policy.config
    if policy.spec.parts:
        extractor, mean, std = _encoders(policy, env)
        _fold(layers[0], mean, std)
        return _Layers(extractor, layers, activation)
    _fold(layers[0], policy.obs_mean, policy.obs_std)
    if not isinstance(layers[0], nn.Conv2d):
        return _Layers([], layers, activation)
    if (config.channels, config.kernels, config.strides, config.hidden) != NATURE_CNN:
        raise ExportError(f"{OTHER_CONVOLUTIONS}, hidden 512). Use onnx.")
    return _Layers(layers[:-1], layers[-1:], activation)


def _encoders(policy: NetworkPolicy, env: EnvConfig) -> tuple[list[Any], Tensor, Tensor]:
    """Return the layers for the pictures of a dict, and the moments of the inputs of the dense layers.

    Raises:
        ExportError: SB3's CombinedExtractor computes something else.
    """
    spec, config, body = policy.spec, policy.config, policy.body
    first = body[0] if isinstance(body, nn.Sequential) else body
    encoders = dict(zip(first.keys, first.encoders, strict=True)) if isinstance(first, EntriesLayer) else {}
    space = _dict_env(env).observation_space
    if MASK in spec.entries:
        raise ExportError("sb3: MultiInputPolicy has no action mask. Use onnx.")
    if not isinstance(space, spaces.Dict) or any(isinstance(part, CONTAINERS) for part in space.values()):
        raise ExportError("sb3: SB3 has no tuples and no dicts within dicts. Use onnx.")
    last = {channels_last(spec.entries[key].shape) for key in encoders}
    if {*scaled_images(space)} != {*encoders} or len(last) > 1:
        raise ExportError(
            "sb3: SB3 has convolutions for all pictures of bytes from 0 to 255, with channels on one side, and for no "
            "other entry. Use onnx."
        )
    if encoders and (config.channels, config.kernels, config.strides, config.activation) != (*NATURE_CNN[:3], "relu"):
        raise ExportError(f"{OTHER_CONVOLUTIONS}, activation relu). Use onnx.")
    layers: list[Any] = []
    means, stds, start = [], [], 0
    for key, part in spec.parts:
        own = slice(start, start := start + part.width)
        mean, std = policy.obs_mean[own], policy.obs_std[own]
        if key in encoders:
            convolutions = _linear_layers(copy.deepcopy(encoders[key]))
            _fold(convolutions[0], mean[0], std[0])
            layers += convolutions
            mean, std = torch.zeros(config.picture_features), torch.ones(config.picture_features)
        elif part.dtype == "uint8":  # which SB3 does not divide
            mean, std = 255 * mean, 255 * std
        means.append(mean)
        stds.append(std)
    return layers, torch.cat(means), torch.cat(stds)


def _fold(layer: nn.Linear | nn.Conv2d, mean: Tensor, std: Tensor) -> None:
    """Give a layer the weights of W (x - mean) / std + b for x itself."""
    with torch.no_grad():
        weight = layer.weight.double()
        if isinstance(layer, nn.Linear):
            mean, std = (value.double().expand(mean.shape or (1,)).reshape(1, -1) for value in (mean, std))
            scaled = weight / std
            shift = (scaled * mean).sum(1)
        else:
            scaled = weight / std.double()
            shift = scaled.sum((1, 2, 3)) * mean.double()
        layer.weight.copy_(scaled)
        assert layer.bias is not None
        layer.bias.copy_(layer.bias.double() - shift)


def _dict_env(env: EnvConfig) -> Any:
    """Return the environment with its dict observations, not as one array."""
    flat = make_env(env).env
    return flat.env if isinstance(flat, FlatDict) else flat


def _new_model(algorithm: str, env: EnvConfig, options: dict[str, Any], kind: str) -> Any:
    import stable_baselines3

    settings: dict[str, Any] = {"policy_kwargs": options, "device": "cpu", "seed": 0}
    if algorithm in ("DQN", "SAC"):
        # Not stored, but `load` makes one of this size: a million pictures, SB3's default, take 56 GB.
        settings["buffer_size"] = 100_000 if kind == "MlpPolicy" else 10_000
    return getattr(stable_baselines3, algorithm)(
        kind, _dict_env(env) if kind == "MultiInputPolicy" else make_env(env), **settings
    )


def _copy_layers(algorithm: str, target: Any, layers: _Layers, policy: NetworkPolicy) -> None:
    *hidden, output = layers.dense
    extractor, pairs = [], []
    if layers.extractor:
        owner = target.q_net if algorithm == "DQN" else target.actor if algorithm == "SAC" else target
        extractor = [*_linear_layers(owner.features_extractor)]
        pairs = list(zip(extractor, layers.extractor, strict=True))
    if algorithm == "DQN":
        pairs += zip(_linear_layers(target.q_net.q_net), [*hidden, output], strict=True)
    elif algorithm == "SAC":
        pairs += zip(_linear_layers(target.actor.latent_pi), hidden, strict=True)
    else:
        pairs += zip(_linear_layers(target.mlp_extractor.policy_net), hidden, strict=True)
    with torch.no_grad():
        if algorithm == "SAC":
            half = output.out_features // 2
            for layer, rows in ((target.actor.mu, slice(0, half)), (target.actor.log_std, slice(half, None))):
                layer.weight.copy_(output.weight[rows])
                layer.bias.copy_(output.bias[rows])
        elif algorithm == "PPO":
            pairs.append((target.action_net, output))
            if policy.log_std is not None:
                target.log_std.copy_(policy.log_std)
        for ours, theirs in pairs:
            ours.weight.copy_(theirs.weight)
            ours.bias.copy_(theirs.bias)
        if algorithm == "DQN":
            target.q_net_target.load_state_dict(target.q_net.state_dict())


def _linear_layers(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def _save(model: Any, path: Path) -> None:
    with path.open("wb") as file:
        model.save(file)


class Sb3Runtime(ExportedPolicy):
    """Zip in SB3: its actions; the parameters of the head are those of our own reader.

    SB3's own reader runs code of the file, so it reads only a `trusted` file; otherwise the actions are ours too.
    """

    def __init__(self, interface: Interface, path: Path, trusted: bool) -> None:
        import stable_baselines3

        super().__init__(interface)
        algorithm = algorithm_of(interface.spec.head)
        self._model = getattr(stable_baselines3, algorithm).load(path, device="cpu") if trusted else None
        reader = load_sb3(path)  # which takes pictures as SB3 transposes them
        images = reader.spec.transposed_images(interface.spec)
        self._reader = ChannelsLastPolicy(reader, images) if images else reader

    def run(self, entries: Arrays, state: StateArray) -> Answer:
        """Return deterministic actions."""
        spec = self.spec
        obs = join_parts(entries, spec.parts, spec.obs_dtype) if spec.parts else entries["obs"]
        with torch.no_grad():
            output = self._reader(torch.from_numpy(obs))[0]
        action, params = output.mode().numpy(), output.params.numpy()
        if self._model is not None:
            action, _ = self._model.predict(entries if spec.parts else obs, deterministic=True)
        shaped = np.asarray(action).reshape(-1, *spec.head.action_shape)
        return shaped.astype(self.interface.action_dtype), params, None
