"""Actors built from the tensors of an SB3 policy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rldistill.core.errors import SpecMismatchError
from rldistill.core.heads import ActionHead, BernoulliHead, HeadKind, SquashedGaussianHead
from rldistill.core.spec import PolicySpec
from rldistill.policies.actor_critic import KERNELS, Actor, ActorPolicy, Noise
from rldistill.policies.encoding import moments_shape
from rldistill.teachers.file_policy import synthetic_observations
from rldistill.teachers.sb3.extractor import Extractor, ExtractorActor, ExtractorPolicy
from rldistill.teachers.weights import InconsistentFileError, RebuildError, Tensors, build_actor, require_fit

Layer = tuple[Tensor, Tensor]
"""Weight and bias."""
CONVOLUTION_INDICES = (0, 2, 4, 7)
"""Indices of the layers in an `Actor`'s image extractor: three convolutions and a dense layer."""


@dataclass(frozen=True)
class Settings:
    """Settings of a policy that its tensors do not determine."""

    activation: str
    normalize_images: bool = True
    squash_output: bool = False
    expln: bool = False
    clip_mean: float = 2.0
    extractor: Extractor | None = None


@dataclass(frozen=True)
class _Parts:
    """Layers of a policy by purpose; `extractor` is the name of its features extractor."""

    extractor: str
    hidden: list[Layer]
    output: Layer
    head: ActionHead
    noise: Noise = "none"
    log_std: Tensor | Layer | None = None
    critic: list[Layer] | None = None


def rebuild(tensors: Tensors, spec: PolicySpec, settings: Settings, scaled_images: Collection[str]) -> ActorPolicy:
    """Return the policy of a state dict, for a spec with the neutral head of the action space.

    The entries `scaled_images` of the observation are divided by 255. Raise RebuildError for tensors of other names or
    shapes than those of an SB3 policy.
    """
    parts = _find_parts(tensors, spec.head, settings)
    recurrent = {name: value for name, value in tensors.items() if name.startswith("lstm_actor.")}
    config = Actor(
        lstm=_lstm_sizes(recurrent),
        hidden=_widths(parts.hidden),
        critic=None if parts.critic is None else _widths(parts.critic[:-1]),
        activation=settings.activation,
        noise=parts.noise,
        expln=settings.expln,
        clip_mean=settings.clip_mean if parts.noise == "state" and parts.extractor.startswith("actor") else 0.0,
    )
    state = _state(parts, recurrent)
    spec = dataclasses.replace(spec, head=parts.head)
    policy: ActorPolicy
    if settings.extractor is None:
        images = _image_layers(tensors, parts.extractor, spec)
        for key, layers in images.items():
            state |= _name_layers(f"extractors.image_{key}", layers, CONVOLUTION_INDICES)
            sizes = _widths(layers)
            config = dataclasses.replace(config, images=tuple(images), channels=sizes[:-1], features=sizes[-1])
        policy = build_actor(config, spec, state)
    else:
        width = recurrent.get("lstm_actor.weight_ih_l0", [*parts.hidden, parts.output][0][0]).shape[1]
        own_config = ExtractorActor(**(vars(config) | {"features": width}), extractor=settings.extractor)
        require_fit(own_config, spec, state)
        prefix = f"{parts.extractor}."
        weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        policy = ExtractorPolicy(own_config, spec, settings.extractor.build(weights))
        policy.load_state_dict(state, strict=False)
        policy(synthetic_observations(spec, 2))  # raises if the extractor does not return [B, features]
    policy.obs_std.copy_(_undone_scale(spec, scaled_images if settings.normalize_images else ()))
    return policy.eval()


def _find_parts(tensors: Tensors, neutral: ActionHead, settings: Settings) -> _Parts:
    for name in ("q_net", "quantile_net"):
        if layers := _find_layers(tensors, rf"{name}\.{name}\.(\d+)"):
            output = layers[-1] if name == "q_net" else _mean_quantile(layers[-1], neutral)
            return _Parts(f"{name}.features_extractor", layers[:-1], output, require_kind(neutral, "q_values"))
    if "action_net.weight" in tensors:
        return _on_policy(tensors, neutral, settings)
    if layers := _find_layers(tensors, r"action_net\.(\d+)"):
        head = (
            require_kind(neutral, "squashed_gaussian") if settings.squash_output and not neutral.discrete else neutral
        )
        return _Parts("features_extractor", layers[:-1], layers[-1], head)
    extractor = "actor.features_extractor"
    if "actor.mu.weight" in tensors or "actor.log_std" in tensors:
        head, hidden = require_kind(neutral, "squashed_gaussian"), _find_layers(tensors, r"actor\.latent_pi\.(\d+)")
        mean = _find_layer(tensors, "actor.mu" if "actor.mu.weight" in tensors else "actor.mu.0")
        if "actor.log_std" in tensors:
            log_std = _expand_log_std(tensors["actor.log_std"], mean)
            return _Parts(extractor, hidden, mean, head, "state", log_std)
        return _Parts(extractor, hidden, mean, head, "learned", _find_layer(tensors, "actor.log_std"))
    if layers := _find_layers(tensors, r"actor\.mu\.(\d+)"):
        return _Parts(extractor, layers[:-1], layers[-1], require_kind(neutral, "squashed_gaussian"))
    raise RebuildError("tensors of an unknown policy")


def _on_policy(tensors: Tensors, neutral: ActionHead, settings: Settings) -> _Parts:
    shared = _find_layers(tensors, r"mlp_extractor\.shared_net\.(\d+)")
    separate = any(name.startswith("pi_features_extractor.") for name in tensors)
    extractor = "pi_features_extractor" if separate else "features_extractor"
    hidden = shared + _find_layers(tensors, r"mlp_extractor\.policy_net\.(\d+)")
    output = _find_layer(tensors, "action_net")
    critic: list[Layer] | None = None
    recurrent = "lstm_actor.weight_ih_l0" in tensors  # whose critic has an LSTM of its own
    if "value_net.weight" in tensors and not recurrent and _critic_shares_features(tensors):
        values = _find_layers(tensors, r"mlp_extractor\.value_net\.(\d+)")
        critic = [*shared, *values, _find_layer(tensors, "value_net")]
    log_std = tensors.get("log_std")
    if isinstance(neutral, BernoulliHead) and len(output[0]) == 2 * neutral.num_params:
        # MaskablePPO has two logits for each bit, whose difference is the logit of a Bernoulli variable.
        output = output[0][1::2] - output[0][::2], output[1][1::2] - output[1][::2]
    if log_std is None:
        return _Parts(extractor, hidden, output, neutral, critic=critic)
    if log_std.ndim == 1:
        return _Parts(extractor, hidden, output, require_kind(neutral, "gaussian"), "free", log_std, critic)
    head = require_kind(neutral, "squashed_gaussian" if settings.squash_output else "gaussian")
    return _Parts(extractor, hidden, output, head, "state", _expand_log_std(log_std, output), critic)


def _critic_shares_features(tensors: Tensors) -> bool:
    """Return True if the value is a function of the same features as the action."""
    pairs = [(name, name.replace("pi_", "vf_", 1)) for name in tensors if name.startswith("pi_features_extractor.")]
    return all(other in tensors and torch.equal(tensors[name], tensors[other]) for name, other in pairs)


def require_kind(head: ActionHead, kind: HeadKind) -> ActionHead:
    """Return the head as another kind; raise InconsistentFileError if it is for other actions."""
    try:
        return head.as_kind(kind)
    except SpecMismatchError:
        raise InconsistentFileError(f"a network for {kind} actions, but the action space is {head.kind}") from None


def _mean_quantile(output: Layer, head: ActionHead) -> Layer:
    """Return the layer of the mean over quantiles, which is linear and so can be taken in the weights."""
    weight, bias = output
    actions = head.num_params
    if not head.discrete or weight.ndim != 2 or len(weight) % actions:
        raise InconsistentFileError(f"quantiles of shape {tuple(weight.shape)} for {actions} actions")
    return weight.view(-1, actions, weight.shape[1]).mean(0), bias.view(-1, actions).mean(0)


def _expand_log_std(log_std: Tensor, mean: Layer) -> Tensor:
    """Return gSDE's log_std with a column for each action; without `full_std` all actions share one."""
    return log_std.expand(-1, len(mean[0])) if log_std.ndim == 2 and log_std.shape[1] == 1 else log_std


def _image_layers(tensors: Tensors, extractor: str, spec: PolicySpec) -> dict[str, list[Layer]]:
    """Return the layers of each image: three convolutions and a dense one."""
    images = {}
    for key in spec.entries:
        prefix = re.escape(f"{extractor}.extractors.{key}." if key else f"{extractor}.")
        if convolutions := _find_layers(tensors, rf"{prefix}cnn\.(\d+)"):
            kernels = tuple(int(weight.shape[-1]) for weight, _ in convolutions)
            if kernels != KERNELS:
                raise RebuildError(f"convolutions with kernels {kernels}; only SB3's NatureCNN is known")
            images[key] = convolutions + _find_layers(tensors, rf"{prefix}linear\.(\d+)")
    known = rf"({re.escape(extractor)}|(pi_|vf_)?features_extractor)\.(extractors\.[^.]+\.)?(cnn|linear)\."
    for name in tensors:
        if name.startswith(extractor) and not re.match(known, name):
            raise RebuildError(f"a features extractor of its own ({name}); name its class with extractor: module:Class")
    return images


def _lstm_sizes(recurrent: Tensors) -> tuple[int, ...]:
    if not recurrent:
        return ()
    layers = {int(match[1]) for name in recurrent if (match := re.fullmatch(r"lstm_actor\.weight_hh_l(\d+)", name))}
    if any("reverse" in name or "_hr_" in name for name in recurrent) or not layers:
        raise RebuildError("an LSTM that is bidirectional or has projections")
    return int(recurrent["lstm_actor.weight_hh_l0"].shape[1]), len(layers)


def _state(parts: _Parts, recurrent: Tensors) -> Tensors:
    """Return the parameters of the actor but those of its images."""
    state = _name_layers("body", parts.hidden)
    if parts.critic is not None:
        state |= _name_layers("critic", parts.critic)
    for name, value in recurrent.items():  # without biases, they are zero
        own_name = name.replace("lstm_actor", "lstm", 1)
        state.setdefault(own_name.replace("weight", "bias"), torch.zeros(len(value)))
        state[own_name] = value
    plain = parts.noise == "none" and not isinstance(parts.head, SquashedGaussianHead)
    state |= _name_layer("output" if plain else "output.mean", parts.output)
    if isinstance(parts.log_std, Tensor):
        state["output.log_std"] = parts.log_std
    elif parts.log_std is not None:
        state |= _name_layer("output.log_std", parts.log_std)
    return state


def _undone_scale(spec: PolicySpec, scaled: Collection[str]) -> Tensor:
    """Return the `obs_std` that undoes our division by 255 where SB3 does not divide: bytes of no scaled image."""
    stds = {key: 1 / 255 if part.dtype == "uint8" and key not in scaled else 1.0 for key, part in spec.entries.items()}
    if not spec.parts:
        return torch.full(moments_shape(spec), stds[""])
    return torch.cat([torch.full((part.width,), stds[key]) for key, part in spec.parts])


def _find_layers(tensors: Tensors, pattern: str) -> list[Layer]:
    """Return the layers of a sequence in order; `pattern` matches their names, with the index as its one group."""
    names: dict[int, str] = {}
    for name in tensors:
        if match := re.fullmatch(rf"({pattern})\.weight", name):
            names.setdefault(int(match[2]), match[1])
    return [_find_layer(tensors, names[index]) for index in sorted(names)]


def _find_layer(tensors: Tensors, name: str) -> Layer:
    weight = tensors[f"{name}.weight"]
    return weight, tensors.get(f"{name}.bias", torch.zeros(len(weight)))


def _widths(layers: Iterable[Layer]) -> tuple[int, ...]:
    return tuple(len(weight) for weight, _ in layers)


def _name_layer(name: str, layer: Layer) -> Tensors:
    return {f"{name}.weight": layer[0], f"{name}.bias": layer[1]}


def _name_layers(prefix: str, layers: Sequence[Layer], indices: Sequence[int] | None = None) -> Tensors:
    """Return the tensors of a sequence of layers under new names, by default with an activation after each layer."""
    indices = range(0, 2 * len(layers), 2) if indices is None else indices
    if len(layers) != len(indices):
        raise InconsistentFileError(f"{len(layers)} layers, but {prefix} has {len(indices)}")
    tensors: Tensors = {}
    for index, layer in zip(indices, layers, strict=True):
        tensors |= _name_layer(f"{prefix}.{index}", layer)
    return tensors
