"""Stable-Baselines3 and sb3-contrib policies, rebuilt from their tensors; nothing in their files is executed."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rldistill.errors import CorruptArtifactError, SpecMismatchError, UntrustedFileError
from rldistill.students import Cnn, Mlp
from rldistill.students.network import ACTIVATIONS, NetworkPolicy
from rldistill.types import ActionHead, FramePipeline, PolicySpec

MAX_MEMBER = 1 << 30
NATURE_STRIDES = (4, 2, 1)
SUPPORTED = "DQN, QRDQN, PPO, A2C, SAC, TD3, TQC with MlpPolicy or CnnPolicy"
Tensors = dict[str, Tensor]


def load_sb3(path: Path) -> NetworkPolicy:
    """Read a model that SB3's `save` wrote, of any version since 1.0.

    Raises:
        UntrustedFileError: not an SB3 zip, or a network that cannot be rebuilt from plain text and tensors.
        CorruptArtifactError: truncated.
    """
    if (normaliser := path.with_suffix("") / "vecnormalize.pkl").exists():
        raise UntrustedFileError(
            f"{path}: {normaliser.name} lies beside it, so the teacher saw normalised observations; "
            "this version cannot read the normaliser and will not ignore it"
        )
    data, tensors = _read_zip(path)
    spec = _spec_from_text(path, data)
    return from_tensors(tensors, spec, _activation(path, data, tensors), str(path))


def to_native(model: Any) -> NetworkPolicy:
    """The acting network of a live SB3 model as a policy of ours."""
    from stable_baselines3.common.preprocessing import is_image_space

    space, tensors = model.observation_space, model.policy.state_dict()
    action_space = model.action_space
    head = (
        ActionHead("categorical", (int(action_space.n),))
        if hasattr(action_space, "n")
        else ActionHead("deterministic", low=tuple(action_space.low.tolist()), high=tuple(action_space.high.tolist()))
    )
    frames = FramePipeline(space.shape[1], space.shape[2], space.shape[0]) if is_image_space(space) else None
    spec = PolicySpec(space.shape, str(space.dtype), head, frames)
    kind = type(model.policy.actor if hasattr(model.policy, "actor") else model.policy)
    function: Any = getattr(model.policy, "activation_fn", None)
    names: dict[Any, str] = {module: name for name, module in ACTIVATIONS.items()}
    return from_tensors(tensors, spec, names.get(function, "relu"), kind.__name__)


def from_tensors(tensors: Tensors, spec: PolicySpec, activation: str, name: str) -> NetworkPolicy:
    """Rebuild the acting network from SB3's names and shapes; `spec` has the neutral head of the action space."""
    dense, head, extra = _acting_layers(tensors, spec.head, name)
    convolutions = _layers(tensors, r"(?:q_net\.|quantile_net\.|actor\.)?(?:pi_)?features_extractor\.cnn\.(\d+)")
    if convolutions:
        linear = _layers(tensors, r"(?:q_net\.|quantile_net\.|actor\.)?(?:pi_)?features_extractor\.linear\.(\d+)")
        dense = linear + dense
    policy = _network(spec, head, activation, convolutions, dense, name)
    own = policy.state_dict()
    wanted = [key for key in own if key.endswith((".weight", ".bias"))]
    given = [tensor for layer in [*convolutions, *dense] for tensor in layer]
    try:
        policy.load_state_dict(dict(zip(wanted, given, strict=True)) | extra, strict=False)
    except (RuntimeError, ValueError) as error:
        raise UntrustedFileError(f"{name}: its tensors do not form a network this can rebuild: {error}") from None
    return policy.eval()


Layer = tuple[Tensor, Tensor]


def _acting_layers(tensors: Tensors, neutral: ActionHead, name: str) -> tuple[list[Layer], ActionHead, Tensors]:
    """Dense layers up to the output, the head, and parameters beside them."""
    if q_values := _layers(tensors, r"q_net\.q_net\.(\d+)"):
        return q_values, dataclasses.replace(neutral, kind="q_values"), {}
    if quantiles := _layers(tensors, r"quantile_net\.quantile_net\.(\d+)"):
        weight, bias = quantiles[-1]
        actions = neutral.nvec[0]
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
            raise UntrustedFileError(f"{name}: gSDE is not supported; supported: {SUPPORTED}")
        return layers, dataclasses.replace(neutral, kind="gaussian"), {"log_std": tensors["log_std"]}
    squashed = dataclasses.replace(neutral, kind="squashed_gaussian")
    if "actor.log_std.weight" in tensors:
        both = [
            torch.cat([tensors[f"actor.{part}.{kind}"] for part in ("mu", "log_std")]) for kind in ("weight", "bias")
        ]
        return [*_layers(tensors, r"actor\.latent_pi\.(\d+)"), (both[0], both[1])], squashed, {}
    if layers := _layers(tensors, r"actor\.mu\.(\d+)"):
        weight, bias = layers[-1]
        # TD3's tanh(mu) is the mode of a squashed Gaussian without spread.
        spread = torch.zeros_like(weight), torch.full_like(bias, -20.0)
        return [*layers[:-1], (torch.cat([weight, spread[0]]), torch.cat([bias, spread[1]]))], squashed, {}
    raise UntrustedFileError(f"{name}: its tensors are not those of a policy this knows; supported: {SUPPORTED}")


def _layers(tensors: Tensors, pattern: str) -> list[Layer]:
    found: dict[int, str] = {}
    for key in tensors:
        if match := re.fullmatch(rf"({pattern})\.weight", key):
            found.setdefault(int(match[2]), match[1])
    return [(tensors[f"{found[i]}.weight"], tensors[f"{found[i]}.bias"]) for i in sorted(found)]


def _network(
    spec: PolicySpec, head: ActionHead, activation: str, convolutions: list[Layer], dense: list[Layer], name: str
) -> NetworkPolicy:
    spec = dataclasses.replace(spec, head=head)
    hidden = tuple(int(weight.shape[0]) for weight, _ in dense[:-1])
    if not convolutions:
        return Mlp(hidden, activation).build(spec)
    kernels = tuple(int(weight.shape[-1]) for weight, _ in convolutions)
    if kernels != (8, 4, 3):
        raise UntrustedFileError(f"{name}: convolutions with kernels {kernels}; of these only SB3's NatureCNN is known")
    channels = tuple(int(weight.shape[0]) for weight, _ in convolutions)
    return Cnn(channels, kernels, NATURE_STRIDES, hidden, "relu").build(spec)


def _read_zip(path: Path) -> tuple[dict[str, Any], Tensors]:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            for needed in ("data", "policy.pth"):
                if needed not in sizes:
                    raise UntrustedFileError(f"{path}: not an SB3 model: it has no {needed}")
                if sizes[needed] > MAX_MEMBER:
                    raise UntrustedFileError(f"{path}: {needed} unpacks to {sizes[needed]:,} bytes; refused")
            data = json.loads(archive.read("data"))
            tensors = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CorruptArtifactError(f"{path}: there is no such file") from None
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
        raise CorruptArtifactError(f"{path}: not a whole SB3 zip ({error})") from None
    except Exception as error:  # weights_only raises pickle.UnpicklingError for whatever is not a tensor
        if type(error).__name__ != "UnpicklingError":
            raise
        raise UntrustedFileError(f"{path}: policy.pth holds more than tensors; refused") from None
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UntrustedFileError(f"{path}: not an SB3 model: data or policy.pth is not what it should be")
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CorruptArtifactError(f"{path}: {key} holds NaN or infinite weights")
    return data, tensors


def _spec_from_text(path: Path, data: dict[str, Any]) -> PolicySpec:
    """Shapes and sizes from the plain text beside the pickled spaces, which are never read."""
    try:
        obs, action = data["observation_space"], data["action_space"]
        shape = tuple(int(size) for size in re.findall(r"\d+", str(obs["shape"] if "shape" in obs else obs["_shape"])))
        if "n" in action:
            head = ActionHead("categorical", (int(action["n"]),))
        else:
            low, high = (tuple(float(x) for x in re.findall(r"[-+.\deinf]+", str(action[k]))) for k in ("low", "high"))
            head = ActionHead("deterministic", low=low, high=high)
        dtype = str(obs["dtype"])
    except (KeyError, TypeError, ValueError) as error:
        raise SpecMismatchError(f"{path}: its spaces cannot be read from plain text ({error!r})") from None
    frames = FramePipeline(shape[1], shape[2], shape[0]) if dtype == "uint8" and len(shape) == 3 else None
    return PolicySpec(shape, dtype, head, frames)


def _activation(path: Path, data: dict[str, Any], tensors: Tensors) -> str:
    text = str((data.get("policy_kwargs") or {}).get("activation_fn", ""))
    if not text:
        return "tanh" if "action_net.weight" in tensors else "relu"
    match = re.search(r"(\w+)'>", text)
    name = match[1].lower() if match else text
    if name not in ACTIVATIONS:
        raise UntrustedFileError(f"{path}: activation {text}; known: {', '.join(ACTIVATIONS)}")
    return name
