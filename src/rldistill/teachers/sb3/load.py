"""Stable-Baselines3 and sb3-contrib policies, rebuilt from their tensors without executing code of their files."""

import ast
import base64
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from torch.nn import RReLU

from rldistill.core.errors import (
    DOWNLOAD_HINT,
    ConfigError,
    CorruptArtifactError,
    RLDistillError,
    SpecMismatchError,
    UntrustedFileError,
    error_text,
    short_repr,
)
from rldistill.core.spec import PolicySpec, Wrapper
from rldistill.envs.spaces import spec_from_spaces
from rldistill.io.state_dicts import read_tensors
from rldistill.io.untrusted import MAX_WEIGHTS_BYTES, open_zip, read_member
from rldistill.policies.actor_critic import ActorPolicy
from rldistill.policies.layers import ACTIVATIONS, WEIGHTED_ACTIVATIONS, import_activation
from rldistill.policies.layers import activation as make_activation
from rldistill.teachers.sb3.extractor import Extractor, InconsistentFileError, RebuildError
from rldistill.teachers.sb3.normalizer import normalize, read_arrays, read_normalizer
from rldistill.teachers.sb3.spaces import read_spaces, scaled_images
from rldistill.teachers.sb3.tensors import Settings, Tensors, rebuild
from rldistill.teachers.sb3.zoo_folder import read_zoo_folder

MAX_DATA_BYTES = 64 << 20
SUPPORTED = (
    "DQN, QRDQN, PPO, A2C, TRPO, ARS, SAC, TD3, DDPG, TQC, CrossQ, RecurrentPPO and MaskablePPO with MlpPolicy, "
    "CnnPolicy or MultiInputPolicy"
)
POLICY_MODULES = (
    *(f"stable_baselines3.{name}.policies" for name in ("common", "dqn", "ppo", "a2c", "sac", "td3", "ddpg")),
    *(
        f"sb3_contrib.{name}.policies"
        for name in ("qrdqn", "tqc", "trpo", "ars", "crossq", "ppo_recurrent", "ppo_mask")
    ),
    *(f"sb3_contrib.common.{name}.policies" for name in ("recurrent", "maskable")),
)
EXTRACTORS = tuple(
    f"stable_baselines3.common.torch_layers.{name}" for name in ("FlattenExtractor", "NatureCNN", "CombinedExtractor")
)
LINEAR_ARS = "ARSLinearPolicy"


def load_sb3(path: Path, activation: str | None = None, extractor: str | None = None) -> ActorPolicy:
    """Load a model that SB3's `save` wrote, of any version since 1.0, with the settings of rl-baselines3-zoo beside it.

    Raise the errors of `load_policy`.
    """
    if activation is not None:
        import_activation(activation, "teacher.activation")
    data, tensors = _read_zip(path)
    folder = read_zoo_folder(path)
    try:
        obs_space, action_space = read_spaces(data)
        own = _extractor_from_text(path, data, obs_space, extractor)
        settings = _settings_from_text(path, data, tensors, activation, own)
        spec = spec_from_spaces(str(path), obs_space, action_space)
        view, is_image = folder.view, spec.obs_dtype == "uint8" and len(spec.obs_shape) == 3
        if is_image and folder.env_id is not None and folder.frames is None:
            view = (*view, Wrapper("ChannelsFirst"))  # the environment's own images have channels last
        spec = dataclasses.replace(spec, env_kwargs=folder.env_kwargs, frames=folder.frames, view=view)
        policy = rebuild(tensors, spec, settings, scaled_images(obs_space))
    except SpecMismatchError as error:
        raise UntrustedFileError(f"{path}: its spaces are not supported: {error}") from None
    except InconsistentFileError as error:
        problem = f"its text and its tensors differ: {error}. Save it again with model.save()."
        raise UntrustedFileError(f"{path}: {problem}") from None
    except RebuildError as error:
        raise UntrustedFileError(f"{path}: unsupported: {error}. Use {SUPPORTED}.") from None
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UntrustedFileError(
            f"{path}: data is not in the format of SB3's save() ({type(error).__name__}: {short_repr(str(error))}). "
            "Save it again, or load its state dict with module:factory."
        ) from None
    if folder.normalizer is not None:
        normalize(policy, read_normalizer(folder.normalizer), folder.normalizer)
    return policy


def observed_normalized(path: Path) -> bool:
    """Return True if the last observation of the training shows that VecNormalize had changed it.

    It does so where it is outside of its space, or of float32 though the space is of float64.
    """
    try:
        data, _ = _read_zip(path)
        space = read_spaces(data)[0]
        arrays = read_arrays(base64.b64decode(data["_last_obs"][":serialized:"]))
    except (LookupError, RebuildError, RLDistillError, TypeError, ValueError):
        return False
    boxes = [*space.spaces.values()] if isinstance(space, spaces.Dict) else [space]
    return len(arrays) == len(boxes) and any(
        array.dtype == np.float32
        and box.dtype.kind == "f"
        and (box.dtype == np.float64 or bool(((array < box.low - 1e-3) | (array > box.high + 1e-3)).any()))
        for array, box in zip(arrays, boxes, strict=True)
        if isinstance(box, spaces.Box) and array.shape[1:] == box.shape
    )


def to_native(model: Any, spec: PolicySpec | None = None) -> ActorPolicy:
    """Return the acting network of a live SB3 model as a policy of ours; raise ConfigError if ours cannot express it.

    The spec of the environment, which has the frame pipeline, is by default that of the model's spaces.
    """
    policy = model.policy
    try:
        _require_known_extractor(_dotted_name(policy.features_extractor_class))
        distribution = getattr(policy, "action_dist", None) or getattr(getattr(policy, "actor", None), "action_dist", 0)
        settings = Settings(
            _activation_name(_dotted_name(policy.activation_fn)),
            policy.normalize_images,
            bool(policy.squash_output),
            bool(getattr(distribution, "use_expln", False)),
            float(getattr(getattr(policy, "actor", None), "clip_mean", 2.0)),
            float(getattr(policy, "batch_norm_params", {}).get("batch_norm_eps", 1e-3)),
        )
        tensors = {name: value.detach().cpu() for name, value in policy.state_dict().items()}
        spec = spec or spec_from_spaces(type(model).__name__, model.observation_space, model.action_space)
        return rebuild(tensors, spec, settings, scaled_images(model.observation_space))
    except RebuildError as error:
        raise ConfigError(f"{type(model).__name__}: unsupported: {error}. Use {SUPPORTED}.") from None


def _read_zip(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Return `data` as JSON and `policy.pth` as tensors; refuse any other file."""
    members = []
    try:
        with open_zip(path) as archive:
            for name, limit in (("data", MAX_DATA_BYTES), ("policy.pth", MAX_WEIGHTS_BYTES)):
                if name not in archive.namelist():
                    if min((info.header_offset for info in archive.infolist()), default=0) > 0:
                        # The rest ends with the archive inside policy.pth.
                        raise CorruptArtifactError(f"{path}: not a whole SB3 zip: its end is missing; {DOWNLOAD_HINT}")
                    problem = f"not an SB3 model: it has no {name}"
                    raise UntrustedFileError(f"{path}: {problem}. Use a zip of SB3's model.save().")
                members.append(read_member(path, archive, name, limit))
        data = json.loads(members[0])
    except RLDistillError:
        raise
    except Exception as error:  # zlib, zipfile and json raise many kinds of errors for damaged bytes
        raise CorruptArtifactError(f"{path}: not a whole SB3 zip ({error_text(error)}); {DOWNLOAD_HINT}") from None
    if not isinstance(data, dict):
        raise UntrustedFileError(f"{path}: not an SB3 model: its data is no mapping. Use a zip of model.save().")
    policy_class = data.get("policy_class")
    module = str(policy_class.get("__module__")) if isinstance(policy_class, dict) else ""
    if module.startswith(("stable_baselines3.", "sb3_contrib.")) and module not in POLICY_MODULES:
        name = module.removesuffix(".policies").rpartition(".")[2]
        raise UntrustedFileError(f"{path}: the algorithm {short_repr(name)} is not supported. Use {SUPPORTED}.")
    return data, read_tensors(members[1], path, "policy.pth")


def _settings_from_text(
    path: Path, data: dict[str, Any], tensors: Tensors, option: str | None, extractor: Extractor | None
) -> Settings:
    kwargs = data.get("policy_kwargs") or {}
    module = data["policy_class"]["__module__"]
    # ARS squashes its actions unless its policy is the linear one; all others only on request.
    ars = any(name.startswith("action_net.") and name.split(".")[1].isdecimal() for name in tensors)
    linear = LINEAR_ARS in str(data["policy_class"].get("__init__", ""))
    default = f"torch.nn.{'Tanh' if 'action_net.weight' in tensors else 'ReLU'}" if module in POLICY_MODULES else None
    text = kwargs.get("activation_fn", default)
    try:
        if text is None:
            raise RebuildError(
                f"a policy class of {short_repr(module)}, whose activation is unknown; if its layers are SB3's own, "
                "set activation"
            )
        activation = _activation_name(_dotted_name(text))
    except RebuildError:
        if option is None:
            raise
        arguments = _partial(_dotted_name(text))[1]
        activation = f"{option}({arguments})" if arguments and "(" not in option else option
        import_activation(activation, "teacher.activation")
        option = activation
    if option not in (None, activation):
        raise ConfigError(f"teacher.activation: {path} has the activation {activation}. Remove the option.")
    return Settings(
        activation,
        _is_true(kwargs.get("normalize_images", True)),
        _is_true(kwargs.get("squash_output", ars and not linear)),
        _is_true(kwargs.get("use_expln", False)),
        float(kwargs.get("clip_mean", 2.0)),
        float(kwargs.get("batch_norm_eps", 1e-3)),
        extractor,
    )


def _extractor_from_text(
    path: Path, data: dict[str, Any], space: spaces.Space[Any], option: str | None
) -> Extractor | None:
    kwargs, module = data.get("policy_kwargs") or {}, data["policy_class"]["__module__"]
    name = _dotted_name(kwargs.get("features_extractor_class", EXTRACTORS[0] if module in POLICY_MODULES else ""))
    if option is None:
        if name:
            _require_known_extractor(name)
        return None
    if name in EXTRACTORS:
        raise ConfigError(f"teacher.extractor: {path} has a features extractor of SB3. Remove the option.")
    settings = kwargs.get("features_extractor_kwargs", {})
    if not isinstance(settings, dict):
        raise RebuildError(f"features_extractor_kwargs {short_repr(settings)}, which are not plain values")
    return Extractor(option, space, settings)


def _dotted_name(value: Any) -> str:
    """Return `torch.nn.modules.activation.Tanh` for the class or for its text in a file."""
    return re.sub(r"^<class '|'>$", "", str(value))


def _activation_name(text: str) -> str:
    """Return `leakyrelu(0.2)` for the text of a class, or of a partial of a class."""
    dotted, arguments = _partial(text)
    module, _, name = dotted.rpartition(".")
    if name == "RReLU" and module.startswith("torch.nn."):  # a teacher acts with the mean of its slopes
        slopes = RReLU(*ast.literal_eval(f"[{re.sub(r'[a-z]+=', '', arguments)}]"))
        return f"leakyrelu({(slopes.lower + slopes.upper) / 2})"
    if not f"{module}.".startswith("torch.nn.") or name.lower() not in ACTIVATIONS | WEIGHTED_ACTIVATIONS:
        raise RebuildError(
            f"activation {short_repr(dotted)}; name your own with activation: module:Class, or use "
            f"{', '.join(name for name in ACTIVATIONS if ':' not in name)}"
        )
    full = f"{name.lower()}({arguments})" if arguments else name.lower()
    try:
        make_activation(full)
    except ConfigError as error:
        raise RebuildError(str(error)) from None
    return full


def _partial(text: str) -> tuple[str, str]:
    """Return the name of a class, and the arguments of a `functools.partial` of it."""
    match = re.fullmatch(r"functools\.partial\(<class '([^']+)'>(?:, (.*))?\)", text)
    return (match[1], match[2] or "") if match else (text, "")


def _require_known_extractor(dotted: str) -> None:
    if dotted not in EXTRACTORS:
        names = ", ".join(name.rpartition(".")[2] for name in EXTRACTORS)
        raise RebuildError(
            f"features extractor {short_repr(dotted)}; name your own with extractor: module:Class, or use SB3's {names}"
        )


def _is_true(value: Any) -> bool:
    return str(value) not in ("False", "0", "None")
