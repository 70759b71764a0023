"""Actors built from the tensors of an SB3 policy, with SB3's features extractors or one of the user's own."""

import dataclasses
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rldistill.core.errors import RLDistillError, SpecMismatchError
from rldistill.core.heads import ActionHead, BernoulliHead, HeadKind, SquashedGaussianHead
from rldistill.core.spec import PolicySpec
from rldistill.io.tensors import below
from rldistill.policies.actor_critic import KERNELS, Actor, ActorPolicy, Noise
from rldistill.teachers.file_policy import synthetic_observations
from rldistill.teachers.sb3.extractor import (
    Extractor,
    ExtractorActor,
    ExtractorPolicy,
    InconsistentFileError,
    RebuildError,
)

Tensors = dict[str, Tensor]


class Layer(NamedTuple):
    """Weight and bias of a layer, and the weight of the PReLU after it."""

    weight: Tensor
    bias: Tensor
    slope: Tensor | None = None


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
    batch_norm_eps: float = 1e-3
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
    rescaling: Layer | None = None


def rebuild(tensors: Tensors, spec: PolicySpec, settings: Settings, scaled_images: Collection[str]) -> ActorPolicy:
    """Return the policy of a state dict, for a spec with the neutral head of the action space.

    The entries `scaled_images` of the observation are divided by 255. Raise RebuildError for tensors of other names or
    shapes than those of an SB3 policy.
    """
    parts = _find_parts(tensors, spec.head, settings)
    spec = dataclasses.replace(spec, head=parts.head)
    layers = {f"body.{2 * index}": layer for index, layer in enumerate(parts.hidden)}
    layers |= {f"critic.{2 * index}": layer for index, layer in enumerate(parts.critic or ())}
    if parts.rescaling is not None:
        layers[f"body.{2 * len(parts.hidden)}"] = parts.rescaling
    plain = parts.noise == "none" and not isinstance(parts.head, SquashedGaussianHead)
    layers["output" if plain else "output.mean"] = parts.output
    state, lstm = _lstm_state(tensors)
    if isinstance(parts.log_std, Tensor):
        state["output.log_std"] = parts.log_std
    elif parts.log_std is not None:
        layers["output.log_std"] = parts.log_std
    config = Actor(
        lstm=lstm,
        hidden=_widths(parts.hidden),
        critic=None if parts.critic is None else _widths(parts.critic[:-1]),
        activation=settings.activation,
        noise=parts.noise,
        expln=settings.expln,
        rescaled=parts.rescaling is not None,
        clip_mean=settings.clip_mean if parts.noise == "state" and parts.extractor.startswith("actor") else 0.0,
    )
    if own := settings.extractor:
        features = state.get("lstm.weight_ih_l0", [*parts.hidden, parts.output][0][0]).shape[1]
        config = ExtractorActor(**(vars(config) | {"features": features}), extractor=own)
    else:
        images = _image_layers(tensors, parts.extractor, spec)
        for key, image in images.items():
            named = zip(CONVOLUTION_INDICES, image, strict=True)
            layers |= {f"extractors.image_{key}.{index}": layer for index, layer in named}
            sizes = _widths(image)
            config = dataclasses.replace(config, images=tuple(images), channels=sizes[:-1], features=sizes[-1])
    for name, layer in layers.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = layer.weight, layer.bias
        if layer.slope is not None:
            network, index = name.split(".")
            state[f"{network}.{int(index) + 1}.weight"] = layer.slope
    _require_fit(config, spec, state)
    if own:
        extractor = own.build(below(f"{parts.extractor}.", tensors))
        policy: ActorPolicy = ExtractorPolicy(config, spec, extractor, own.reference)
        policy(synthetic_observations(spec, 2))  # raises if the extractor does not return [B, features]
    else:
        policy = config.build(spec)
    policy.load_state_dict(state, strict=False)
    # Our division of bytes by 255 is undone where SB3 does not divide.
    scaled = scaled_images if settings.normalize_images else ()
    stds = {key: 1 / 255 if part.dtype == "uint8" and key not in scaled else 1.0 for key, part in spec.entries.items()}
    by_value = [torch.full((part.width,), stds[key]) for key, part in spec.parts]
    policy.obs_std.copy_(torch.cat(by_value) if spec.parts else torch.tensor(stds[""]))
    return policy.eval()


def _require_fit(config: Actor, spec: PolicySpec, state: Tensors) -> None:
    """Raise RebuildError unless `state` are the parameters of the actor for `spec`."""
    try:
        with torch.device("meta"):  # a wrong shape must cost no memory before it is detected
            expected = dict(config.build(spec).named_parameters())
    except (RLDistillError, RuntimeError, TypeError, OverflowError, KeyError) as error:
        raise RebuildError(str(error)) from None
    if set(state) != set(expected):
        raise InconsistentFileError(f"unexpected or missing tensors: {', '.join(sorted(set(state) ^ set(expected)))}")
    for name, value in state.items():
        if not value.is_floating_point():
            raise InconsistentFileError(f"integers for {name}")
        if value.shape != expected[name].shape:
            raise InconsistentFileError(
                f"a tensor of shape {tuple(value.shape)} for {name}, which has {tuple(expected[name].shape)}"
            )


def _find_parts(tensors: Tensors, neutral: ActionHead, settings: Settings) -> _Parts:
    for name in ("q_net", "quantile_net"):
        if layers := _find_layers(tensors, rf"{name}\.{name}\.(\d+)"):
            *hidden, (weight, bias, _) = layers
            if name == "quantile_net":  # the mean over quantiles is linear, and so can be taken in the weights
                actions = neutral.num_params
                if not neutral.discrete or weight.ndim != 2 or len(weight) % actions:
                    raise InconsistentFileError(f"quantiles of shape {tuple(weight.shape)} for {actions} actions")
                weight = weight.view(-1, actions, weight.shape[1]).mean(0)
                bias = bias.view(-1, actions).mean(0)
            return _Parts(f"{name}.features_extractor", hidden, Layer(weight, bias), require_kind(neutral, "q_values"))
    if "action_net.weight" in tensors:
        return _on_policy(tensors, neutral, settings)
    if layers := _find_layers(tensors, r"action_net\.(\d+)"):
        squashed = settings.squash_output and not neutral.discrete
        head = require_kind(neutral, "squashed_gaussian") if squashed else neutral
        return _Parts("features_extractor", layers[:-1], layers[-1], head)
    extractor = "actor.features_extractor"
    if "actor.mu.weight" in tensors or "actor.log_std" in tensors:
        head = require_kind(neutral, "squashed_gaussian")
        hidden, last = _fold_batch_renorm(tensors, settings.batch_norm_eps)
        mean = _find_layer(tensors, "actor.mu" if "actor.mu.weight" in tensors else "actor.mu.0")
        if "actor.log_std" in tensors:
            log_std = _expand_log_std(tensors["actor.log_std"], mean)
            rescaling = None if last is None else Layer(last.weight.diag(), last.bias)
            return _Parts(extractor, hidden, mean, head, "state", log_std, rescaling=rescaling)
        outputs = [mean, _find_layer(tensors, "actor.log_std")]
        mean, log_std_layer = outputs if last is None else [_rescaled(layer, last) for layer in outputs]
        return _Parts(extractor, hidden, mean, head, "learned", log_std_layer)
    if layers := _find_layers(tensors, r"actor\.mu\.(\d+)"):
        return _Parts(extractor, layers[:-1], layers[-1], require_kind(neutral, "squashed_gaussian"))
    raise RebuildError("tensors of an unknown policy")


def _fold_batch_renorm(tensors: Tensors, epsilon: float) -> tuple[list[Layer], Layer | None]:
    """Return the hidden layers of SAC, TQC or CrossQ, whose batch renormalizations become part of the next layers.

    The second value is the last one, as factors and summands, since an output is after it.
    """
    layers: list[Layer] = []
    scale: Layer | None = None
    indices = {int(match[1]) for name in tensors if (match := re.match(r"actor\.latent_pi\.(\d+)\.", name))}
    for index in sorted(indices):
        name = f"actor.latent_pi.{index}"
        if f"{name}.ra_mean" in tensors:
            factor = tensors[f"{name}.scale"].double() / (tensors[f"{name}.ra_var"].double() + epsilon).sqrt()
            scale = Layer(factor, tensors[f"{name}.bias"] - tensors[f"{name}.ra_mean"] * factor)
            continue
        layer = _find_layer(tensors, name)
        if layer.weight.ndim == 1 and layers:
            layers[-1] = layers[-1]._replace(slope=layer.weight)
            continue
        layers.append(layer if scale is None else _rescaled(layer, scale))
        scale = None
    return layers, scale and Layer(scale.weight.float(), scale.bias.float())


def _rescaled(layer: Layer, scale: Layer) -> Layer:
    """Return a dense layer for inputs before they are multiplied and shifted."""
    weight = layer.weight.double()
    return Layer((weight * scale.weight).float(), (layer.bias + weight @ scale.bias.double()).float())


def _on_policy(tensors: Tensors, neutral: ActionHead, settings: Settings) -> _Parts:
    shared = _find_layers(tensors, r"mlp_extractor\.shared_net\.(\d+)")
    hidden = shared + _find_layers(tensors, r"mlp_extractor\.policy_net\.(\d+)")
    output = _find_layer(tensors, "action_net")
    own_features = [name for name in tensors if name.startswith("pi_features_extractor.")]
    extractor = "pi_features_extractor" if own_features else "features_extractor"
    pairs = [(tensors[name], tensors.get(name.replace("pi_", "vf_", 1))) for name in own_features]
    same_features = all(value is not None and torch.equal(own, value) for own, value in pairs)
    recurrent = "lstm_actor.weight_ih_l0" in tensors  # whose critic has an LSTM of its own
    critic: list[Layer] | None = None
    if "value_net.weight" in tensors and not recurrent and same_features:
        values = _find_layers(tensors, r"mlp_extractor\.value_net\.(\d+)")
        critic = [*shared, *values, _find_layer(tensors, "value_net")]
    log_std = tensors.get("log_std")
    if isinstance(neutral, BernoulliHead) and len(output[0]) == 2 * neutral.num_params:
        # MaskablePPO has two logits for each bit, whose difference is the logit of a Bernoulli variable.
        output = Layer(*(part[1::2] - part[::2] for part in (output.weight, output.bias)))
    if log_std is None:
        return _Parts(extractor, hidden, output, neutral, critic=critic)
    if log_std.ndim == 1:
        return _Parts(extractor, hidden, output, require_kind(neutral, "gaussian"), "free", log_std, critic)
    head = require_kind(neutral, "squashed_gaussian" if settings.squash_output else "gaussian")
    return _Parts(extractor, hidden, output, head, "state", _expand_log_std(log_std, output), critic)


def require_kind(head: ActionHead, kind: HeadKind) -> ActionHead:
    """Return the head as another kind; raise InconsistentFileError if it is for other actions."""
    try:
        return head.as_kind(kind)
    except SpecMismatchError:
        raise InconsistentFileError(f"a network for {kind} actions, but the action space is {head.kind}") from None


def _expand_log_std(log_std: Tensor, mean: Layer) -> Tensor:
    """Return gSDE's log_std with a column for each action; without `full_std` all actions share one."""
    return log_std.expand(-1, len(mean[0])) if log_std.ndim == 2 and log_std.shape[1] == 1 else log_std


def _image_layers(tensors: Tensors, extractor: str, spec: PolicySpec) -> dict[str, list[Layer]]:
    """Return the layers of each image: three convolutions and a dense one."""
    images = {}
    for key in spec.entries:
        prefix = re.escape(f"{extractor}.extractors.{key}." if key else f"{extractor}.")
        if convolutions := _find_layers(tensors, rf"{prefix}cnn\.(\d+)"):
            kernels = tuple(int(layer.weight.shape[-1]) for layer in convolutions)
            if kernels != KERNELS:
                raise RebuildError(f"convolutions with kernels {kernels}; only SB3's NatureCNN is known")
            dense = _find_layers(tensors, rf"{prefix}linear\.(\d+)")
            if len(dense) != 1:
                raise InconsistentFileError(f"{len(dense)} dense layers after the convolutions, expected one")
            images[key] = convolutions + dense
    known = rf"({re.escape(extractor)}|(pi_|vf_)?features_extractor)\.(extractors\.[^.]+\.)?(cnn|linear)\."
    for name in tensors:
        if name.startswith(extractor) and not re.match(known, name):
            raise RebuildError(f"a features extractor of its own ({name}); name its class with extractor: module:Class")
    return images


def _lstm_state(tensors: Tensors) -> tuple[Tensors, tuple[int, ...]]:
    """Return the tensors of the actor's LSTM by our names, and its size and number of layers."""
    state: Tensors = {}
    layers = set()
    for name, value in tensors.items():
        if name.startswith("lstm_actor."):
            if "reverse" in name or "_hr_" in name:
                raise RebuildError("an LSTM that is bidirectional or has projections")
            layers |= {match[1] for match in [re.fullmatch(r"lstm_actor\.weight_hh_l(\d+)", name)] if match}
            own_name = name.replace("lstm_actor", "lstm", 1)
            state.setdefault(own_name.replace("weight", "bias"), torch.zeros(len(value)))  # where it has no biases
            state[own_name] = value
    return state, (int(state["lstm.weight_hh_l0"].shape[1]), len(layers)) if state else ()


def _find_layers(tensors: Tensors, pattern: str) -> list[Layer]:
    """Return the layers of a sequence in order; `pattern` matches their names, with the index as its one group."""
    names: dict[int, str] = {}
    for name in tensors:
        if match := re.fullmatch(rf"({pattern})\.weight", name):
            names.setdefault(int(match[2]), match[1])
    layers: list[Layer] = []
    for _, name in sorted(names.items()):
        layer = _find_layer(tensors, name)
        if layer.weight.ndim == 1 and layers and f"{name}.bias" not in tensors:
            layers[-1] = layers[-1]._replace(slope=layer.weight)
        else:
            layers.append(layer)
    return layers


def _find_layer(tensors: Tensors, name: str) -> Layer:
    weight = tensors[f"{name}.weight"]
    return Layer(weight, tensors.get(f"{name}.bias", torch.zeros(len(weight))))


def _widths(layers: Iterable[Layer]) -> tuple[int, ...]:
    return tuple(len(layer.weight) for layer in layers)
