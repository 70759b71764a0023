"""Stable-Baselines3 and sb3-contrib policies, rebuilt from their tensors; nothing in their files is executed."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rldistill.core.errors import (
    DOWNLOAD_HINT,
    ConfigError,
    CorruptArtifactError,
    RLDistillError,
    UntrustedFileError,
    error_text,
    short_repr,
)
from rldistill.core.spec import PolicySpec, Wrapper
from rldistill.io.untrusted import MAX_WEIGHTS, read_member, read_tensors
from rldistill.policies.actor_critic import ActorPolicy
from rldistill.policies.layers import ACTIVATIONS
from rldistill.teachers.sb3.normalizer import Normaliser, read_normaliser
from rldistill.teachers.sb3.spaces import (
    Disagree,
    NotRebuilt,
    divided_in,
    divided_in_text,
    spec_from_spaces,
    spec_from_text,
)
from rldistill.teachers.sb3.tensors import Settings, Tensors, rebuild
from rldistill.teachers.sb3.zoo_folder import ZooFolder, read_zoo_folder

MAX_DATA = 64 << 20
SUPPORTED = (
    "DQN, QRDQN, PPO, A2C, TRPO, ARS, SAC, TD3, DDPG, TQC, RecurrentPPO and MaskablePPO with MlpPolicy, CnnPolicy or "
    "MultiInputPolicy"
)
POLICY_MODULES = (
    *(f"stable_baselines3.{name}.policies" for name in ("common", "dqn", "ppo", "a2c", "sac", "td3", "ddpg")),
    *(f"sb3_contrib.{name}.policies" for name in ("qrdqn", "tqc", "trpo", "ars", "ppo_recurrent", "ppo_mask")),
    *(f"sb3_contrib.common.{name}.policies" for name in ("recurrent", "maskable")),
)
EXTRACTORS = ("FlattenExtractor", "NatureCNN", "CombinedExtractor")
LINEAR_ARS = "ARSLinearPolicy"


def load_sb3(path: Path, activation: str | None = None) -> ActorPolicy:
    """Read a model that SB3's `save` wrote, of any version since 1.0, with what rl-baselines3-zoo left beside it.

    Args:
        path: the zip.
        activation: of its dense layers, for a policy class whose text does not tell.

    Raises:
        ConfigError: it tells another `activation`.
        UntrustedFileError: not an SB3 zip, or a network that cannot be rebuilt from plain text and tensors.
        CorruptArtifactError: truncated or altered.
    """
    data, tensors = _read_zip(path)
    folder = read_zoo_folder(path)
    try:
        settings = _settings_from_text(data, tensors, activation)
        spec = _with_view(spec_from_text(data), folder)
        policy = rebuild(tensors, spec, settings, divided_in_text(data["observation_space"]))
    except Disagree as error:
        raise UntrustedFileError(
            f"{path}: {error}: its text and its tensors are not of one policy; save it again with model.save()"
        ) from None
    except NotRebuilt as error:
        raise UntrustedFileError(f"{path}: {error}; supported: {SUPPORTED}") from None
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UntrustedFileError(
            f"{path}: data is not what SB3's model.save() writes ({type(error).__name__}: {short_repr(str(error))}); "
            "save it again, or give its state dict to module:factory"
        ) from None
    if activation not in (None, settings.activation):
        raise ConfigError(f"teacher: {path}: activation: the zip says {settings.activation}; leave it out")
    if folder.normaliser is not None:
        _normalise(policy, folder.normaliser)
    return policy


def to_native(model: Any, spec: PolicySpec | None = None) -> ActorPolicy:
    """The acting network of a live SB3 model as a policy of ours.

    Args:
        model: of any algorithm in `train.ALGORITHMS`.
        spec: of the environment; without it, nothing is known of how frames became an observation.

    Raises:
        ConfigError: the network has parts that ours cannot express.
    """
    policy = model.policy
    try:
        _require_known_features(_dotted(policy.features_extractor_class))
        distribution = getattr(policy, "action_dist", None) or getattr(getattr(policy, "actor", None), "action_dist", 0)
        settings = Settings(
            _activation_of(_dotted(policy.activation_fn)),
            policy.normalize_images,
            bool(policy.squash_output),
            bool(getattr(distribution, "use_expln", False)),
            float(getattr(getattr(policy, "actor", None), "clip_mean", 2.0)),
        )
        tensors = {name: value.detach().cpu() for name, value in policy.state_dict().items()}
        return rebuild(tensors, spec or spec_from_spaces(model), settings, divided_in(model.observation_space))
    except NotRebuilt as error:
        raise ConfigError(f"{type(model).__name__}: {error}; supported: {SUPPORTED}") from None


def _normalise(policy: ActorPolicy, path: Path) -> None:
    """Let the policy see what its normaliser would show it, and its critic tell values in the units of rewards."""
    normaliser = read_normaliser(path)
    if policy.critic is not None:
        with torch.no_grad():
            for parameter in policy.critic[-1].parameters():
                parameter.mul_(normaliser.reward_scale)
    if not normaliser.moments:
        return
    try:
        normaliser, spec = _before_stacking(normaliser, policy.spec)
        mean, std = normaliser.flat(spec)
    except UntrustedFileError as error:
        raise UntrustedFileError(f"{path}: {error}; give the normaliser that was saved beside this agent") from None
    policy.set_spec(spec)
    policy.standardize(mean, std * policy.obs_std)
    policy.obs_clip = dict.fromkeys(normaliser.moments, normaliser.clip)


def _before_stacking(normaliser: Normaliser, spec: PolicySpec) -> tuple[Normaliser, PolicySpec]:
    """Where the zoo stacked normalised observations: equal moments for all of a stack, which begins with the mean."""
    if not spec.view or spec.view[-1].name != "StackFrames" or list(normaliser.moments) != [""]:
        return normaliser, spec
    mean, var = normaliser.moments[""]
    stack = spec.view[-1].kwargs["stack"]
    if (*mean.shape[:-1], mean.shape[-1] * stack) != spec.obs_shape:
        return normaliser, spec
    padded = Wrapper("StackFrames", {"stack": stack, "padding": mean.ravel().tolist()})
    moments = np.concatenate([mean] * stack, -1), np.concatenate([var] * stack, -1)
    return dataclasses.replace(normaliser, moments={"": moments}), dataclasses.replace(
        spec, view=(*spec.view[:-1], padded)
    )


def _with_view(spec: PolicySpec, folder: ZooFolder) -> PolicySpec:
    """The spec with what has to be wrapped around the environment; pictures come from it with channels last."""
    view, spec = folder.view, dataclasses.replace(spec, env_kwargs=folder.env_kwargs)
    pictures = spec.obs_dtype == "uint8" and len(spec.obs_shape) == 3
    if pictures and folder.env_id is not None and folder.frames is None:
        view = (*view, Wrapper("ChannelsFirst"))
    return dataclasses.replace(spec, frames=folder.frames, view=view)


def _read_zip(path: Path) -> tuple[dict[str, Any], Tensors]:
    """`data` as JSON and `policy.pth` as tensors; raises for whatever is not both."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(_member(path, archive, "data", MAX_DATA))
            weights = _member(path, archive, "policy.pth", MAX_WEIGHTS)
    except RLDistillError:
        raise
    except Exception as error:  # damaged bytes make zlib, zipfile and json raise whatever they like
        raise CorruptArtifactError(f"{path}: not a whole SB3 zip ({error_text(error)}); {DOWNLOAD_HINT}") from None
    if not isinstance(data, dict):
        raise UntrustedFileError(f"{path}: not an SB3 model: its data is no mapping; give what model.save() wrote")
    _require_supported(path, data)
    tensors = read_tensors(weights, path, "policy.pth")
    return data, tensors


def _require_supported(path: Path, data: dict[str, Any]) -> None:
    """Raise UntrustedFileError for an algorithm of SB3 or sb3-contrib that this does not know, before its tensors."""
    about = data.get("policy_class")
    module = str(about.get("__module__")) if isinstance(about, dict) else ""
    if module.startswith(("stable_baselines3.", "sb3_contrib.")) and module not in POLICY_MODULES:
        name = module.removesuffix(".policies").rpartition(".")[2]
        raise UntrustedFileError(f"{path}: the algorithm {short_repr(name)} is not supported; supported: {SUPPORTED}")


def _member(path: Path, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    first = min((info.header_offset for info in archive.infolist()), default=0)
    if name not in archive.namelist() and first > 0:  # what is left ends with the archive that policy.pth is
        raise CorruptArtifactError(f"{path}: not a whole SB3 zip: its end is missing; copy or download it again")
    if name not in archive.namelist():
        raise UntrustedFileError(
            f"{path}: not an SB3 model: it has no {name}; give the zip that SB3's model.save() wrote"
        )
    return read_member(path, archive, name, limit)


def _settings_from_text(data: dict[str, Any], tensors: Tensors, activation: str | None) -> Settings:
    """What the tensors do not tell, once the policy is known to be one of SB3's own."""
    module = data["policy_class"]["__module__"]
    default = "tanh" if "action_net.weight" in tensors else "relu"
    if module not in POLICY_MODULES:
        if activation is None:
            raise NotRebuilt(
                f"a policy class of {short_repr(module)}, whose activation its file does not tell: if its layers are "
                "SB3's own, name it ({path: ..., activation: relu})"
            )
        default = activation
    kwargs = data.get("policy_kwargs") or {}
    if "features_extractor_class" in kwargs:
        _require_known_features(_dotted(kwargs["features_extractor_class"]))
    # ARS squashes its actions unless its policy is the linear one; all others only on request.
    ars = any(name.startswith("action_net.") and name.split(".")[1].isdecimal() for name in tensors)
    linear = LINEAR_ARS in str(data["policy_class"].get("__init__", ""))
    return Settings(
        _activation_of(_dotted(kwargs["activation_fn"])) if "activation_fn" in kwargs else default,
        _truth(kwargs.get("normalize_images", True)),
        _truth(kwargs.get("squash_output", ars and not linear)),
        _truth(kwargs.get("use_expln", False)),
        float(kwargs.get("clip_mean", 2.0)),
    )


def _dotted(value: Any) -> str:
    """`torch.nn.modules.activation.Tanh`, of the class or of the text that a file has for it."""
    return re.sub(r"^<class '|'>$", "", str(value))


def _activation_of(dotted: str) -> str:
    module, _, name = dotted.rpartition(".")
    if not f"{module}.".startswith("torch.nn.") or name.lower() not in ACTIVATIONS:
        raise NotRebuilt(f"activation {short_repr(dotted)}; known: torch.nn's {', '.join(ACTIVATIONS)}")
    return name.lower()


def _require_known_features(dotted: str) -> None:
    module, _, name = dotted.rpartition(".")
    if module != "stable_baselines3.common.torch_layers" or name not in EXTRACTORS:
        raise NotRebuilt(f"features extractor {short_repr(dotted)}; known: SB3's {', '.join(EXTRACTORS)}")


def _truth(value: Any) -> bool:
    return str(value) not in ("False", "0", "None")
