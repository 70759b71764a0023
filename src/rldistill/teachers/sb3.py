"""Stable-Baselines3 and sb3-contrib policies, rebuilt from their tensors; nothing in their files is executed."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rldistill.errors import ConfigError, CorruptArtifactError, RLDistillError, UntrustedFileError
from rldistill.students import AnyStudent, Cnn, Mlp
from rldistill.students.network import ACTIVATIONS, NetworkPolicy
from rldistill.types import ActionHead, FramePipeline, PolicySpec

MAX_DATA, MAX_WEIGHTS = 64 << 20, 1 << 30
MAX_PARAMETERS = 1 << 28
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NATURE_KERNELS, NATURE_STRIDES = (8, 4, 3), (4, 2, 1)
SUPPORTED = "DQN, QRDQN, PPO, A2C, SAC, TD3, TQC with MlpPolicy or CnnPolicy, without gSDE"
POLICY_MODULES = (
    *(f"stable_baselines3.{name}.policies" for name in ("common", "dqn", "sac", "td3")),
    *(f"sb3_contrib.{name}.policies" for name in ("qrdqn", "tqc")),
)
NORMALISERS = ("vecnormalize.pkl", "vec_normalize.pkl")
EXTRACTORS = ("FlattenExtractor", "NatureCNN")
Tensors = dict[str, Tensor]
Layer = tuple[Tensor, Tensor]


class _NotRebuilt(Exception):
    """A network that ours cannot express; the text says why."""


def load_sb3(path: Path) -> NetworkPolicy:
    """Read a model that SB3's `save` wrote, of any version since 1.0.

    Raises:
        UntrustedFileError: not an SB3 zip, or a network that cannot be rebuilt from plain text and tensors.
        CorruptArtifactError: truncated or altered.
    """
    for normaliser in (path.with_suffix("") / "vecnormalize.pkl", *map(path.with_name, NORMALISERS)):
        if normaliser.exists():
            raise UntrustedFileError(
                f"{path}: {normaliser} lies beside it, so the teacher saw normalised observations; "
                "this version cannot read the normaliser and will not ignore it"
            )
    data, tensors = _read_zip(path)
    try:
        activation = _activation_from_text(data, tensors)
        return _rebuild(tensors, _spec_from_text(data), activation)
    except _NotRebuilt as error:
        raise UntrustedFileError(f"{path}: {error}; supported: {SUPPORTED}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UntrustedFileError(f"{path}: data is not what SB3 writes ({error!r})") from None


def to_native(model: Any, spec: PolicySpec | None = None) -> NetworkPolicy:
    """The acting network of a live SB3 model as a policy of ours.

    Args:
        model: of any algorithm in `train.ALGORITHMS`.
        spec: of the environment; without it, frames are taken to come from the default pipeline.

    Raises:
        ConfigError: the network has parts that ours cannot express.
    """
    policy = model.policy
    names = {kind: name for name, kind in ACTIVATIONS.items()}
    try:
        if policy.activation_fn not in names:
            raise _NotRebuilt(f"activation {policy.activation_fn.__name__}; known: {', '.join(ACTIVATIONS)}")
        _require_plain_features(policy.features_extractor_class.__name__, policy.normalize_images)
        tensors = {name: value.cpu() for name, value in policy.state_dict().items()}
        return _rebuild(tensors, spec or _spec_from_spaces(model), names[policy.activation_fn])
    except _NotRebuilt as error:
        raise ConfigError(f"{type(model).__name__}: {error}; supported: {SUPPORTED}") from None


def _rebuild(tensors: Tensors, spec: PolicySpec, activation: str) -> NetworkPolicy:
    """The policy of SB3's names and shapes; `spec` has the neutral head of the action space."""
    dense, head, extra = _acting_layers(tensors, spec.head)
    owner = r"(?:q_net\.|quantile_net\.|actor\.)?(?:pi_)?features_extractor"
    convolutions = _layers(tensors, rf"{owner}\.cnn\.(\d+)")
    if convolutions:
        if activation != "relu" and len(dense) > 1:
            raise _NotRebuilt(f"{activation} after convolutions with ReLU")
        dense = _layers(tensors, rf"{owner}\.linear\.(\d+)") + dense
    elif spec.obs_dtype == "uint8" and len(spec.obs_shape) != 3:
        # SB3 divides only images by 255, we all bytes.
        dense[0] = (dense[0][0] * 255, dense[0][1])
    student = _student(activation, convolutions, dense)
    spec = dataclasses.replace(spec, head=head)
    given = [tensor for layer in [*convolutions, *dense] for tensor in layer]
    try:
        with torch.device("meta"):  # a lying shape must not cost memory before it is found out
            wanted = student.build(spec).state_dict()
    except (RLDistillError, RuntimeError, TypeError, OverflowError) as error:
        raise _NotRebuilt(str(error)) from None
    keys = [key for key in wanted if key.endswith((".weight", ".bias"))]
    if len(keys) != len(given):
        raise _NotRebuilt(f"{len(given)} tensors where the network has {len(keys)}")
    state = dict(zip(keys, given, strict=True)) | extra
    for key, value in state.items():
        if value.shape != wanted[key].shape:
            raise _NotRebuilt(f"a tensor of {tuple(value.shape)} where {key} is {tuple(wanted[key].shape)}")
    policy = student.build(spec)
    policy.load_state_dict(state, strict=False)
    return policy.eval()


def _acting_layers(tensors: Tensors, neutral: ActionHead) -> tuple[list[Layer], ActionHead, Tensors]:
    """Dense layers up to the output, the head, and parameters beside them."""
    if q_values := _layers(tensors, r"q_net\.q_net\.(\d+)"):
        return q_values, dataclasses.replace(neutral, kind="q_values"), {}
    if quantiles := _layers(tensors, r"quantile_net\.quantile_net\.(\d+)"):
        weight, bias = quantiles[-1]
        actions = neutral.num_params
        if not neutral.discrete or weight.ndim != 2 or len(weight) % actions:
            raise _NotRebuilt(f"quantiles of shape {tuple(weight.shape)} for {actions} actions")
        # The mean over quantiles is linear, so it is taken once, in the weights.
        mean = weight.view(-1, actions, weight.shape[1]).mean(0), bias.view(-1, actions).mean(0)
        return [*quantiles[:-1], mean], dataclasses.replace(neutral, kind="q_values"), {}
    if "action_net.weight" in tensors:
        hidden = _layers(tensors, r"mlp_extractor\.shared_net\.(\d+)")
        hidden += _layers(tensors, r"mlp_extractor\.policy_net\.(\d+)")
        layers = [*hidden, (tensors["action_net.weight"], tensors["action_net.bias"])]
        if "log_std" not in tensors:
            return layers, neutral, {}
        if tensors["log_std"].ndim != 1:
            raise _NotRebuilt("gSDE")
        return layers, dataclasses.replace(neutral, kind="gaussian"), {"log_std": tensors["log_std"]}
    squashed = dataclasses.replace(neutral, kind="squashed_gaussian")
    if "actor.log_std.weight" in tensors:
        weight, bias = (
            torch.cat([tensors[f"actor.{part}.{of}"] for part in ("mu", "log_std")]) for of in ("weight", "bias")
        )
        return [*_layers(tensors, r"actor\.latent_pi\.(\d+)"), (weight, bias)], squashed, {}
    if "actor.log_std" in tensors:
        raise _NotRebuilt("gSDE")
    if layers := _layers(tensors, r"actor\.mu\.(\d+)"):
        weight, bias = layers[-1]
        # TD3's tanh(mu) is the mode of a squashed Gaussian without spread.
        still = torch.zeros_like(weight), torch.full_like(bias, -20.0)
        return [*layers[:-1], (torch.cat([weight, still[0]]), torch.cat([bias, still[1]]))], squashed, {}
    raise _NotRebuilt("its tensors are not those of a policy this knows")


def _layers(tensors: Tensors, pattern: str) -> list[Layer]:
    found: dict[int, str] = {}
    for key in tensors:
        if match := re.fullmatch(rf"({pattern})\.weight", key):
            found.setdefault(int(match[2]), match[1])
    return [(tensors[f"{found[i]}.weight"], tensors[f"{found[i]}.bias"]) for i in sorted(found)]


def _student(activation: str, convolutions: list[Layer], dense: list[Layer]) -> AnyStudent:
    hidden = tuple(int(weight.shape[0]) for weight, _ in dense[:-1])
    if not convolutions:
        return Mlp(hidden, activation)
    kernels = tuple(int(weight.shape[-1]) for weight, _ in convolutions)
    if kernels != NATURE_KERNELS:
        raise _NotRebuilt(f"convolutions with kernels {kernels}; of these only SB3's NatureCNN is known")
    channels = tuple(int(weight.shape[0]) for weight, _ in convolutions)
    return Cnn(channels, kernels, NATURE_STRIDES, hidden)


def _read_zip(path: Path) -> tuple[dict[str, Any], Tensors]:
    """`data` as JSON and `policy.pth` as tensors; raises for whatever is not both."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(_member(path, archive, "data", MAX_DATA))
            weights = _member(path, archive, "policy.pth", MAX_WEIGHTS)
        if zipfile.is_zipfile(io.BytesIO(weights)):  # whose own members may be packed again
            with zipfile.ZipFile(io.BytesIO(weights)) as inner:
                _require_small(path, "policy.pth", sum(member.file_size for member in inner.infolist()), MAX_WEIGHTS)
        tensors = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    except RLDistillError:
        raise
    except pickle.UnpicklingError:
        raise UntrustedFileError(f"{path}: policy.pth holds more than tensors; refused") from None
    except Exception as error:  # damaged bytes make zlib, zipfile, json and torch raise whatever they like
        raise CorruptArtifactError(f"{path}: not a whole SB3 zip ({error or type(error).__name__})") from None
    if not isinstance(data, dict) or not isinstance(tensors, dict):
        raise UntrustedFileError(f"{path}: not an SB3 model: data or policy.pth is not what it should be")
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UntrustedFileError(f"{path}: policy.pth holds more than tensors; refused")
        plain = value.layout == torch.strided and value.device.type == "cpu" and value.dtype in FLOATS
        if not plain or value.numel() > MAX_PARAMETERS:
            raise UntrustedFileError(f"{path}: {key} is not a plain tensor of a sensible size; refused")
        if not torch.isfinite(value).all():
            raise CorruptArtifactError(f"{path}: {key} holds NaN or infinite weights")
    return data, tensors


def _member(path: Path, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    if name not in archive.namelist():
        raise UntrustedFileError(f"{path}: not an SB3 model: it has no {name}")
    _require_small(path, name, archive.getinfo(name).file_size, limit)
    return archive.read(name)


def _require_small(path: Path, name: str, size: int, limit: int) -> None:
    if size > limit:
        raise UntrustedFileError(f"{path}: {name} unpacks to {size:,} bytes; refused above {limit:,}")


def _spec_from_text(data: dict[str, Any]) -> PolicySpec:
    """Shapes and sizes from the plain text beside the pickled spaces, which are never read."""
    obs, action = data["observation_space"], data["action_space"]
    if (kind := _class_name(obs[":type:"])) != "Box":
        raise _NotRebuilt(f"observations of type {kind}")
    shape = _integers(obs.get("shape", obs.get("_shape")))
    kind = _class_name(action[":type:"])
    if kind == "Discrete" and int(action.get("start", 0)) == 0:
        head = ActionHead("categorical", (int(action["n"]),))
    elif kind == "MultiDiscrete":
        head = ActionHead("multi_categorical", _integers(action["nvec"]))
    elif kind == "Box":
        low, high = (tuple(float(x) for x in re.findall(r"[-+.\deinf]+", str(action[k]))) for k in ("low", "high"))
        if not len(low) == len(high) == math.prod(_integers(action.get("shape", action.get("_shape")))):
            raise _NotRebuilt("action bounds that its text does not give in full")
        head = ActionHead("deterministic", low=low, high=high)
    else:
        raise _NotRebuilt(f"actions of type {kind}, start {action.get('start')}")
    return PolicySpec(shape, str(obs["dtype"]), head, _frames(shape, str(obs["dtype"])))


def _spec_from_spaces(model: Any) -> PolicySpec:
    obs, action = model.observation_space, model.action_space
    kind = type(action).__name__
    if type(obs).__name__ != "Box":
        raise _NotRebuilt(f"observations of type {type(obs).__name__}")
    if kind == "Discrete" and action.start == 0:
        head = ActionHead("categorical", (int(action.n),))
    elif kind == "MultiDiscrete":
        head = ActionHead("multi_categorical", tuple(int(n) for n in action.nvec))
    elif kind == "Box":
        head = ActionHead("deterministic", low=tuple(action.low.tolist()), high=tuple(action.high.tolist()))
    else:
        raise _NotRebuilt(f"actions {action}")
    return PolicySpec(obs.shape, str(obs.dtype), head, _frames(obs.shape, str(obs.dtype)))


def _frames(shape: tuple[int, ...], dtype: str) -> FramePipeline | None:
    return FramePipeline(shape[1], shape[2], shape[0]) if dtype == "uint8" and len(shape) == 3 else None


def _activation_from_text(data: dict[str, Any], tensors: Tensors) -> str:
    """The activation, once the policy is known to be one of SB3's own."""
    module = data["policy_class"]["__module__"]
    if module not in POLICY_MODULES:
        raise _NotRebuilt(f"a policy class of {module}")
    settings = data.get("policy_kwargs") or {}
    extractor = _class_name(settings.get("features_extractor_class", EXTRACTORS[0]))
    _require_plain_features(extractor, str(settings.get("normalize_images", True)) != "False")
    if "activation_fn" not in settings:
        return "tanh" if "action_net.weight" in tensors else "relu"
    name = _class_name(settings["activation_fn"]).lower()
    if name not in ACTIVATIONS:
        raise _NotRebuilt(f"activation {name}; known: {', '.join(ACTIVATIONS)}")
    return name


def _require_plain_features(extractor: str, normalises: bool) -> None:
    if extractor not in EXTRACTORS:
        raise _NotRebuilt(f"features extractor {extractor}")
    if not normalises:
        raise _NotRebuilt("normalize_images: False")


def _class_name(text: Any) -> str:
    """`Box` of "<class 'gymnasium.spaces.box.Box'>"."""
    return str(text).rstrip("'>").rpartition(".")[2]


def _integers(text: Any) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", str(text)))
