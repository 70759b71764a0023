"""Policies as zips of Stable-Baselines3, for fine-tuning there."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rldistill.core.heads import (
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
from rldistill.envs.make import make_env
from rldistill.exporters.program import ExportError
from rldistill.exporters.runtimes import ExportedPolicy, Interface
from rldistill.io.atomic import write_atomic
from rldistill.policies.layers import Flat, has_arguments
from rldistill.policies.network import NetworkPolicy
from rldistill.teachers.sb3.load import load_sb3

PPO_HEADS = (CategoricalHead, MultiCategoricalHead, BernoulliHead, GaussianHead)
NATURE_CNN = ((32, 64, 64), (8, 4, 3), (4, 2, 1), (512,))
"""Channels, kernels, strides and dense layer of the only convolutions that every installation of SB3 has."""


def write_sb3(policy: Policy, env: EnvConfig, path: Path) -> None:
    """Write a zip that `PPO.load`, `DQN.load` or `SAC.load` reads.

    The standardization of observations is part of the first layer.

    Raises:
        ExportError: The policy has a layer that SB3's own policies do not have.
    """
    body, activation = _dense_body(policy)
    assert isinstance(policy, NetworkPolicy)
    head, config = policy.spec.head, policy.config
    convolutions = isinstance(body[0], nn.Conv2d)
    if convolutions and (config.channels, config.kernels, config.strides, config.hidden) != NATURE_CNN:
        raise ExportError(
            "sb3: its convolutions differ from those of SB3's NatureCNN (channels 32, 64, 64, hidden 512). Use onnx."
        )
    hidden = [] if convolutions else [layer.out_features for layer in body[:-1] if isinstance(layer, nn.Linear)]
    algorithm = algorithm_of(head)
    arch: Any = {"DQN": hidden, "SAC": {"pi": hidden, "qf": [256, 256]}, "PPO": {"pi": hidden, "vf": hidden}}[algorithm]
    model = _new_model(algorithm, env, arch, activation, "CnnPolicy" if convolutions else "MlpPolicy")
    layers = [layer for layer in body if isinstance(layer, nn.Linear | nn.Conv2d)]
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


def _dense_body(policy: Policy) -> tuple[list[nn.Module], type[nn.Module]]:
    """Return the layers of a body, copied, the first with the standardization in it, and their activation."""
    if type(policy) is not NetworkPolicy or not isinstance(policy.body, nn.Sequential):
        raise ExportError(f"sb3: SB3 has no {type(policy).__name__}; only linear, mlp and cnn students fit. Use onnx.")
    if policy.spec.parts:
        raise ExportError("sb3: the observation is a dict, whose entries SB3 orders by itself. Use onnx.")
    if policy.obs_clip:
        raise ExportError("sb3: standardized observations are clipped, which no layer of SB3 does. Use onnx.")
    body = [copy.deepcopy(layer) for layer in policy.body if not isinstance(layer, Flat | nn.Flatten)]
    allowed = nn.Linear, nn.Conv2d
    activations = {type(layer) for layer in body if not isinstance(layer, allowed)}
    if policy.num_frozen_layers > 1 or len(activations) > 1:
        raise ExportError(f"sb3: SB3 has no {type(policy.config.features).__name__} features. Use onnx.")
    if any(has_arguments(layer) for layer in body if not isinstance(layer, allowed)):
        raise ExportError("sb3: an activation with arguments or weights is not exported. Use onnx.")
    first = next((layer for layer in body if isinstance(layer, allowed)), None)
    if first is None:
        body = []
    output = copy.deepcopy(policy.output)
    target = first or output
    assert isinstance(target, nn.Linear | nn.Conv2d)
    _fold(target, policy.obs_mean, policy.obs_std)
    return [*body, output], next(iter(activations), nn.ReLU)


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


def _new_model(algorithm: str, env: EnvConfig, arch: Any, activation: type[nn.Module], kind: str) -> Any:
    import stable_baselines3

    options: dict[str, Any] = {"net_arch": arch, "activation_fn": activation}
    settings: dict[str, Any] = {"policy_kwargs": options, "device": "cpu", "seed": 0}
    if algorithm in ("DQN", "SAC"):
        # Not stored, but `load` makes one of this size: a million pictures, SB3's default, take 56 GB.
        settings["buffer_size"] = 10_000 if kind == "CnnPolicy" else 100_000
    return getattr(stable_baselines3, algorithm)(kind, make_env(env), **settings)


def _copy_layers(algorithm: str, target: Any, layers: Sequence[Any], policy: NetworkPolicy) -> None:
    *hidden, output = layers
    convolutions = isinstance(layers[0], nn.Conv2d)
    extractor = []
    if convolutions:
        owner = target.q_net if algorithm == "DQN" else target.actor if algorithm == "SAC" else target
        extractor = [*_linear_layers(owner.features_extractor)]
        pairs = list(zip(extractor, hidden, strict=True))
        hidden = []
    else:
        pairs = []
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
        self._reader = load_sb3(path)

    def run(
        self, entries: dict[str, NDArray[Any]], state: NDArray[np.float32] | None
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32] | None]:
        """Return deterministic actions."""
        with torch.no_grad():
            output = self._reader(torch.from_numpy(entries["obs"]))[0]
        action, params = output.mode().numpy(), output.params.numpy()
        if self._model is not None:
            action, _ = self._model.predict(entries["obs"], deterministic=True)
        dtype = np.int64 if self.spec.head.discrete else np.float32
        return np.asarray(action).reshape(-1, *self.interface.action_shape).astype(dtype), params, None
