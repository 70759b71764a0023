"""SB3's names and shapes of tensors, turned into an `Actor` and its weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from rldistill.core.errors import RLDistillError, SpecMismatchError
from rldistill.core.heads import ActionHead, BernoulliHead, HeadKind, SquashedGaussianHead
from rldistill.core.spec import PolicySpec
from rldistill.policies.actor_critic import KERNELS, Actor, ActorPolicy, Noise
from rldistill.policies.layers import ACTIVATIONS
from rldistill.teachers.sb3.spaces import Disagree, NotRebuilt

Tensors = dict[str, Tensor]
Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Settings:
    """What the tensors do not tell."""

    activation: str
    normalize_images: bool = True
    squash_output: bool = False
    expln: bool = False
    clip_mean: float = 2.0


@dataclass(frozen=True)
class _Parts:
    """The layers of a policy, sorted by what they are for."""

    owner: str
    hidden: list[Layer]
    output: Layer
    head: ActionHead
    noise: Noise = "none"
    log_std: Tensor | Layer | None = None
    critic: list[Layer] | None = None


def rebuild(tensors: Tensors, spec: PolicySpec, settings: Settings, divided: Collection[str]) -> ActorPolicy:
    """The policy; `spec` has the neutral head of the action space, `divided` names what SB3 divides by 255.

    Raises:
        NotRebuilt: tensors of other names or shapes than an SB3 policy of this spec has.
    """
    if settings.activation not in ACTIVATIONS:
        raise NotRebuilt(f"activation {settings.activation}; known: {', '.join(ACTIVATIONS)}")
    parts = _sorted(tensors, spec.head, settings)
    images = _images(tensors, parts.owner, spec)
    recurrent = {name: value for name, value in tensors.items() if name.startswith("lstm_actor.")}
    critic = None if recurrent else parts.critic
    config = Actor(
        images=tuple(images),
        channels=tuple(_rows(layer) for layer in next(iter(images.values()))[:-1]) if images else Actor.channels,
        features=_rows(next(iter(images.values()))[-1]) if images else Actor.features,
        lstm=_lstm_sizes(recurrent),
        hidden=tuple(_rows(layer) for layer in parts.hidden),
        critic=None if critic is None else tuple(_rows(layer) for layer in critic[:-1]),
        activation=settings.activation,
        noise=parts.noise,
        expln=settings.expln,
        clip_mean=settings.clip_mean if parts.noise == "state" and parts.owner.startswith("actor") else 0.0,
    )
    state = _state(parts, images, critic, recurrent)
    spec = dataclasses.replace(spec, head=parts.head)
    _require_fit(config, spec, state)
    policy = config.build(spec)
    policy.load_state_dict(state, strict=False)
    policy.standardize(*_plain_bytes(spec, divided if settings.normalize_images else ()))
    return policy.eval()


def _sorted(tensors: Tensors, neutral: ActionHead, settings: Settings) -> _Parts:
    if layers := _layers(tensors, r"q_net\.q_net\.(\d+)"):
        mean = _mean_quantile(layers[-1], neutral)
        return _Parts("q_net.features_extractor", layers[:-1], mean, _as_kind(neutral, "q_values"))
    if layers := _layers(tensors, r"quantile_net\.quantile_net\.(\d+)"):
        mean = _mean_quantile(layers[-1], neutral)
        return _Parts("quantile_net.features_extractor", layers[:-1], mean, _as_kind(neutral, "q_values"))
    if "action_net.weight" in tensors:
        return _on_policy(tensors, neutral, settings)
    if layers := _layers(tensors, r"action_net\.(\d+)"):
        head = _as_kind(neutral, "squashed_gaussian") if settings.squash_output and not neutral.discrete else neutral
        return _Parts("features_extractor", layers[:-1], layers[-1], head)
    if not any(name.startswith("actor.") for name in tensors):
        raise NotRebuilt("its tensors are not those of a policy this knows")
    squashed = _as_kind(neutral, "squashed_gaussian")
    owner = "actor.features_extractor"
    if "actor.mu.weight" in tensors or "actor.log_std" in tensors:
        mean = _layer(tensors, "actor.mu" if "actor.mu.weight" in tensors else "actor.mu.0")
        hidden = _layers(tensors, r"actor\.latent_pi\.(\d+)")
        if "actor.log_std" in tensors:
            return _Parts(owner, hidden, mean, squashed, "state", _wide(tensors["actor.log_std"], mean))
        return _Parts(owner, hidden, mean, squashed, "learned", _layer(tensors, "actor.log_std"))
    if layers := _layers(tensors, r"actor\.mu\.(\d+)"):
        return _Parts(owner, layers[:-1], layers[-1], squashed)
    raise NotRebuilt("its tensors are not those of a policy this knows")


def _on_policy(tensors: Tensors, neutral: ActionHead, settings: Settings) -> _Parts:
    shared = _layers(tensors, r"mlp_extractor\.shared_net\.(\d+)")
    own = any(name.startswith("pi_features_extractor.") for name in tensors)
    owner = "pi_features_extractor" if own else "features_extractor"
    hidden = shared + _layers(tensors, r"mlp_extractor\.policy_net\.(\d+)")
    output = _layer(tensors, "action_net")
    critic: list[Layer] | None = None
    if "value_net.weight" in tensors and _same_features(tensors):
        critic = [*shared, *_layers(tensors, r"mlp_extractor\.value_net\.(\d+)"), _layer(tensors, "value_net")]
    log_std = tensors.get("log_std")
    if isinstance(neutral, BernoulliHead) and _rows(output) == 2 * neutral.num_params:
        # MaskablePPO has two logits for each bit, of which the difference counts.
        output = output[0][1::2] - output[0][::2], output[1][1::2] - output[1][::2]
    if log_std is None:
        return _Parts(owner, hidden, output, neutral, critic=critic)
    if log_std.ndim == 1:
        return _Parts(owner, hidden, output, _as_kind(neutral, "gaussian"), "free", log_std, critic)
    kind: HeadKind = "squashed_gaussian" if settings.squash_output else "gaussian"
    return _Parts(owner, hidden, output, _as_kind(neutral, kind), "state", _wide(log_std, output), critic)


def _same_features(tensors: Tensors) -> bool:
    """Whether the value is a function of the same features as the action."""
    pairs = [(name, name.replace("pi_", "vf_", 1)) for name in tensors if name.startswith("pi_features_extractor.")]
    return all(other in tensors and torch.equal(tensors[name], tensors[other]) for name, other in pairs)


def _as_kind(head: ActionHead, kind: HeadKind) -> ActionHead:
    try:
        return head.as_kind(kind)
    except SpecMismatchError:
        raise Disagree(f"a network for {kind} actions where the action space is {head.kind}") from None


def _mean_quantile(last: Layer, head: ActionHead) -> Layer:
    weight, bias = last
    actions = head.num_params
    if not head.discrete or weight.ndim != 2 or len(weight) % actions:
        raise Disagree(f"quantiles of shape {tuple(weight.shape)} for {actions} actions")
    # The mean over quantiles is linear, so it is taken once, in the weights.
    return weight.view(-1, actions, weight.shape[1]).mean(0), bias.view(-1, actions).mean(0)


def _wide(log_std: Tensor, mean: Layer) -> Tensor:
    """gSDE's log_std with a column for each action; without `full_std` all actions share one."""
    return log_std.expand(-1, _rows(mean)) if log_std.ndim == 2 and log_std.shape[1] == 1 else log_std


def _images(tensors: Tensors, owner: str, spec: PolicySpec) -> dict[str, list[Layer]]:
    """The layers that each image passes through: three convolutions and a dense one."""
    images = {}
    for key in spec.entries:
        at = re.escape(f"{owner}.extractors.{key}." if key else f"{owner}.")
        if convolutions := _layers(tensors, rf"{at}cnn\.(\d+)"):
            kernels = tuple(int(weight.shape[-1]) for weight, _ in convolutions)
            if kernels != KERNELS:
                raise NotRebuilt(f"convolutions with kernels {kernels}; of these only SB3's NatureCNN is known")
            images[key] = convolutions + _layers(tensors, rf"{at}linear\.(\d+)")
    known = rf"({re.escape(owner)}|(pi_|vf_)?features_extractor)\.(extractors\.[^.]+\.)?(cnn|linear)\."
    for name in tensors:
        if name.startswith(owner) and not re.match(known, name):
            raise NotRebuilt(f"a features extractor of its own ({name})")
    return images


def _lstm_sizes(recurrent: Tensors) -> tuple[int, ...]:
    if not recurrent:
        return ()
    layers = {int(match[1]) for name in recurrent if (match := re.fullmatch(r"lstm_actor\.weight_hh_l(\d+)", name))}
    if any("reverse" in name or "_hr_" in name for name in recurrent) or not layers:
        raise NotRebuilt("an LSTM that is bidirectional or has projections")
    return int(recurrent["lstm_actor.weight_hh_l0"].shape[1]), len(layers)


def _state(parts: _Parts, images: dict[str, list[Layer]], critic: list[Layer] | None, recurrent: Tensors) -> Tensors:
    state: Tensors = {}
    for key, layers in images.items():
        state |= _named(f"extractors.image_{key}.", layers, [0, 2, 4, 7])
    state |= _named("body.", parts.hidden, range(0, 2 * len(parts.hidden), 2))
    if critic is not None:
        state |= _named("critic.", critic, range(0, 2 * len(critic), 2))
    for name, value in recurrent.items():  # without biases, they are zero
        own = name.replace("lstm_actor", "lstm", 1)
        state.setdefault(own.replace("weight", "bias"), torch.zeros(len(value)))
        state[own] = value
    plain = parts.noise == "none" and not isinstance(parts.head, SquashedGaussianHead)
    mean = "output" if plain else "output.mean"
    state |= {f"{mean}.weight": parts.output[0], f"{mean}.bias": parts.output[1]}
    if isinstance(parts.log_std, Tensor):
        state["output.log_std"] = parts.log_std
    elif parts.log_std is not None:
        state |= {"output.log_std.weight": parts.log_std[0], "output.log_std.bias": parts.log_std[1]}
    return state


def _named(prefix: str, layers: list[Layer], places: range | list[int]) -> Tensors:
    if len(layers) != len(places):
        raise Disagree(f"{len(layers)} layers where {prefix[:-1]} has {len(places)}")
    return {
        f"{prefix}{place}.{name}": value
        for place, layer in zip(places, layers, strict=True)
        for name, value in zip(("weight", "bias"), layer, strict=True)
    }


def _require_fit(config: Actor, spec: PolicySpec, state: Tensors) -> None:
    try:
        with torch.device("meta"):  # a lying shape must not cost memory before it is found out
            wanted = dict(config.build(spec).named_parameters())
    except (RLDistillError, RuntimeError, TypeError, OverflowError, KeyError) as error:
        raise NotRebuilt(str(error)) from None
    if set(state) != set(wanted):
        raise Disagree(f"tensors that the network has no place for or lacks: {', '.join(set(state) ^ set(wanted))}")
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise Disagree(f"a tensor of {tuple(value.shape)} where {name} is {tuple(wanted[name].shape)}")


def _plain_bytes(spec: PolicySpec, divided: Collection[str]) -> tuple[Tensor, Tensor]:
    """Moments that undo our division by 255 where SB3 does not divide: bytes that are no image, or on request."""

    def std(key: str, dtype: str) -> float:
        return 1 / 255 if dtype == "uint8" and key not in divided else 1.0

    if not spec.parts:
        only = std("", spec.obs_dtype)
        wide = (sum(spec.nvec),) if spec.nvec else () if spec.obs_dtype == "uint8" else spec.obs_shape
        return torch.zeros(wide), torch.full(wide, only)
    scale = torch.cat([torch.full((part.width,), std(key, part.dtype)) for key, part in spec.parts])
    return torch.zeros_like(scale), scale


def _layers(tensors: Tensors, pattern: str) -> list[Layer]:
    """The layers of a sequence, by its pattern with the place as its one group; a bias that is not there is zero."""
    found: dict[int, str] = {}
    for name in tensors:
        if match := re.fullmatch(rf"({pattern})\.weight", name):
            found.setdefault(int(match[2]), match[1])
    return [_layer(tensors, found[place]) for place in sorted(found)]


def _layer(tensors: Tensors, name: str) -> Layer:
    weight = tensors[f"{name}.weight"]
    return weight, tensors.get(f"{name}.bias", torch.zeros(len(weight)))


def _rows(layer: Layer) -> int:
    return int(layer[0].shape[0])
