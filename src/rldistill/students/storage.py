"""Policies on disk: `policy.safetensors` and `policy.json`, read without executing anything."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError, shown
from rldistill.core.heads import ActionHead, HeadKind
from rldistill.core.spec import FramePipeline, ObsPart, PolicySpec, Wrapper
from rldistill.io.atomic import read_json, write_atomic, write_json
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.students import STUDENTS, AnyStudent, Linear, Mlp, Ridge, Tree
from rldistill.students.features.maps import FEATURES, FEED_FORWARD, NOT_STORED, AnyFeatures, config_document
from rldistill.students.keras import Keras, KerasStudent, load_keras_student
from rldistill.students.tree import TreePolicy

SCHEMA = 1
NETWORKS: dict[str, type[AnyStudent | Actor]] = {**STUDENTS, "actor": Actor}
VIEWS = (
    "ActionSmoothing", "ChannelsFirst", "FilterObservation", "FlattenObservation", "FrameSkip", "FrameStackObservation",
    "GrayscaleObservation", "History", "MaskVelocity", "RescaleAction", "RescaleObservation", "ReshapeObservation",
    "ResizeObservation", "StackFrames", "TimeAwareObservation", "TimeFeature", "TimeLimit",
)  # fmt: skip
"""What a policy's file may ask to be wrapped around an environment: nothing that reads, writes or imports."""
OWN: dict[str, type[Any]] = {}
"""Students of the user's own, by `module:Class`; a file that names one is read only after the user has named it."""
TENSORS, DOCUMENT = "policy.safetensors", "policy.json"


def trust(student: type[Any]) -> None:
    """Let files name this class of students: `load_policy` then reads what was saved of it."""
    if student not in NETWORKS.values():
        OWN[f"{student.__module__}:{student.__qualname__}"] = student


def save_policy(policy: NetworkPolicy, folder: Path, provenance: dict[str, Any], half: bool = False) -> None:
    """Write a policy; `half` stores weights as float16, which a load turns into float32 again.

    Raises:
        ConfigError: weights that are not finite, or are beyond float16 with `half`.
    """
    tensors = learned(policy)
    if half:
        # Not the buffers: a small obs_std would become 0, and a large obs_mean infinite.
        tensors |= {name: tensors[name].half() for name, _ in policy.named_parameters() if name in tensors}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            dtype = str(value.dtype).removeprefix("torch.")
            raise ConfigError(f"{folder}: not saved, since {name} holds numbers that are not finite in {dtype}")
    names = {kind: name for name, kind in {**NETWORKS, **OWN}.items()}
    document = {
        "schema": SCHEMA,
        "student": names[type(policy.config)],
        "config": config_document(policy.config),
        "spec": policy.spec.to_json(),
        "obs_clip": policy.obs_clip,
        "value": policy.value_head is not None,
        "provenance": provenance,
        "sha256": content_hash(tensors),
    }
    if isinstance(policy, KerasStudent):
        policy.save_model(folder)
    write_atomic(folder / TENSORS, lambda temporary: save_file(tensors, temporary))
    write_json(folder / DOCUMENT, document)


def load_native(folder: Path, device: str = "cpu") -> NetworkPolicy:
    """Read a policy of ours; raises CorruptArtifactError, with file and field, for whatever is not one."""
    path = folder / DOCUMENT
    document = read_json(path)
    schema = document.get("schema") if isinstance(document, dict) else type(document).__name__
    if type(schema) is not int or schema != SCHEMA:
        raise CorruptArtifactError(f"{path}: schema {schema}; this version reads schema {SCHEMA}")
    fields = _Fields(path, document)
    policy = _build(fields, folder)
    if _Fields(path, {"value": False, **document}).get("value", lambda value: type(value) is bool, "true or false"):
        _add_value(policy, path)
    tensors = _tensors(folder / TENSORS, fields.get("sha256", lambda value: isinstance(value, str), "a text"))
    # Copies, since the file's own memory is neither aligned nor the policy's to keep.
    weights = {name: value.to(torch.float32, copy=True) for name, value in tensors.items()}
    try:
        policy.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise CorruptArtifactError(f"{folder / TENSORS}: not the weights that {path} describes: {why}") from None
    policy.obs_clip = document.get("obs_clip", {})
    if not _are_limits(policy.obs_clip, [*policy.spec.entries]):
        raise CorruptArtifactError(
            f"{path}: obs_clip: expected positive numbers by entry of the observation, found {shown(policy.obs_clip)}"
        )
    if isinstance(policy, TreePolicy):
        policy.require_sound(str(folder / TENSORS))
    policy.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return policy.eval()


def content_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Fields:
    """A JSON object and where it stands, so that an error names the file and the field."""

    path: Path
    value: dict[str, Any]
    name: str = ""

    def get(self, field: str, fits: Callable[[Any], bool], expected: str) -> Any:
        if field not in self.value:
            raise CorruptArtifactError(f"{self.path}: {self.name}{field} is missing")
        value = self.value[field]
        if not fits(value):
            raise CorruptArtifactError(f"{self.path}: {self.name}{field}: expected {expected}, found {shown(value)}")
        return value

    def inside(self, field: str) -> _Fields:
        value = self.get(field, lambda value: isinstance(value, dict), "an object")
        return _Fields(self.path, value, f"{self.name}{field}.")

    def require_only(self, known: type[Any]) -> None:
        """Every field of the dataclass `known`, and no other."""
        names = [field.name for field in dataclasses.fields(known) if field.metadata != NOT_STORED]
        for name in names:
            self.get(name, lambda value: True, "")
        for name in self.value:
            if name not in names:
                raise CorruptArtifactError(f"{self.path}: {self.name}{name} is no field of {known.__name__}")


def learned(policy: NetworkPolicy) -> dict[str, Tensor]:
    """The numbers of a policy; Keras also counts, in integers, what it has seen."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
    return {
        name: value
        for name, value in tensors.items()
        if value.is_floating_point() and not name.startswith("feature_head.")
    }


def _add_value(policy: NetworkPolicy, path: Path) -> None:
    try:
        with torch.device("meta"):
            policy.add_value()
    except ConfigError as error:
        raise CorruptArtifactError(f"{path}: value: {error}") from None


def _build(fields: _Fields, folder: Path) -> NetworkPolicy:
    known: dict[str, type[Any]] = {**NETWORKS, **OWN}
    expected = f"one of {', '.join(known)}, or one of your own after rldistill.trust(Class)"
    kind = fields.get("student", lambda value: isinstance(value, str) and value in known, expected)
    spec, config = _spec(fields.inside("spec")), fields.inside("config")
    if kind == "mlp":  # whose first files had none
        config = dataclasses.replace(config, value={"features": {"type": "raw"}, **config.value})
    config.require_only(known[kind])
    values = _tuples(config.value)
    if issubclass(known[kind], Linear | Mlp | Ridge | Tree):
        values["features"] = _features(config.inside("features"))
    if kind == "keras":
        return load_keras_student(Keras(**values), spec, folder)
    try:
        # On "meta" no memory is taken and no random number drawn, whatever sizes the file claims.
        with torch.device("meta"):
            policy: NetworkPolicy = known[kind](**values).build(spec)
            return policy
    except (ConfigError, SpecMismatchError) as error:
        raise CorruptArtifactError(f"{fields.path}: config: {error}") from None
    except (TypeError, ValueError, OverflowError, RuntimeError, KeyError, AttributeError):
        raise CorruptArtifactError(f"{fields.path}: config: no network can have these sizes") from None


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    def tuples(item: Any) -> Any:
        if isinstance(item, dict):
            return _tuples(item)
        return tuple(map(tuples, item)) if isinstance(item, list) else item

    return {key: tuples(item) for key, item in value.items()}


def _features(fields: _Fields) -> AnyFeatures:
    kind = fields.get("type", lambda value: isinstance(value, str) and value in FEATURES, f"one of {[*FEATURES]}")
    inner = _Fields(fields.path, {key: value for key, value in fields.value.items() if key != "type"}, fields.name)
    inner.require_only(FEATURES[kind])
    if kind == "teacher":
        _check_stored_network(inner)
    try:
        return FEATURES[kind](**_tuples(inner.value))
    except (ConfigError, TypeError, ValueError) as error:
        raise CorruptArtifactError(f"{fields.path}: {fields.name}{error}") from None


def _check_stored_network(fields: _Fields) -> None:
    """Raise CorruptArtifactError unless the features come from a network that the artifact itself describes.

    Without this check a file could name `module:factory`, and building the student would import and call it.
    """
    fields.get("network", lambda value: value in FEED_FORWARD, f"one of {', '.join(FEED_FORWARD)}")
    config = fields.inside("config")
    if "features" in config.value:
        _features(config.inside("features"))


def _spec(fields: _Fields) -> PolicySpec:
    head = fields.inside("head")
    head.get("kind", lambda value: value in get_args(HeadKind), f"one of {get_args(HeadKind)}")
    fields.get("obs_shape", _sizes, "a list of sizes")
    _check_observation(fields)
    head.get("nvec", _sizes, "a list of sizes")
    for bound in ("low", "high"):
        head.get(bound, _numbers, "a list of finite numbers")
    try:
        ActionHead.from_json(head.value)
    except SpecMismatchError as error:
        raise CorruptArtifactError(f"{fields.path}: {head.name}{error}") from None
    if fields.get("frames", lambda value: value is None or isinstance(value, dict), "an object or null") is not None:
        _check_frames(fields.inside("frames"))
    return PolicySpec.from_json(fields.value)


def _check_observation(fields: _Fields) -> None:
    """The entries that the first files did not have may be missing."""
    value = {"nvec": [], "parts": [], "view": [], "env_kwargs": [], **fields.value}
    parts = _Fields(fields.path, value, fields.name).get("parts", _is_pairs, "a list of names and entries")
    for key, part in parts:
        entry = _Fields(fields.path, part, f"{fields.name}parts.{key}.")
        entry.require_only(ObsPart)
        entry.get("shape", _sizes, "a list of sizes")
        entry.get("nvec", _sizes, "a list of sizes")
        entry.get("dtype", _is_dtype, "a dtype")
    fields.get(
        "obs_dtype", lambda dtype: dtype == "float32" if parts else _is_dtype(dtype), "a dtype, float32 for parts"
    )
    whole = _Fields(fields.path, value, fields.name)
    whole.get("nvec", _sizes, "a list of sizes")
    whole.get("env_kwargs", _are_settings, "a list of names and numbers")
    for wrapper in whole.get("view", lambda view: isinstance(view, list), "a list of wrappers"):
        name = wrapper.get("name") if isinstance(wrapper, dict) else wrapper
        known = name in VIEWS and set(wrapper) == {"name", "kwargs"} and isinstance(wrapper["kwargs"], dict)
        if not known or not Wrapper(**wrapper).modest:
            raise CorruptArtifactError(
                f"{fields.path}: {fields.name}view: {shown(wrapper)}; a policy may ask for {', '.join(VIEWS)}"
            )


def _are_settings(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) in (bool, int, float)
        for pair in value
    )


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], dict)
        for pair in value
    )


def _check_frames(frames: _Fields) -> None:
    frames.require_only(FramePipeline)
    for field in dataclasses.fields(FramePipeline):
        if field.name == "skip" and isinstance(frames.value["skip"], list):
            frames.get("skip", lambda skip: _sizes(skip) and len(skip) == 2, "a number or two")
            continue
        expected = type(field.default)
        frames.get(field.name, lambda value, kind=expected: type(value) is kind, expected.__name__)  # type: ignore[misc]
    frames.get("padding", lambda value: value in ("zero", "repeat"), "zero or repeat")


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size > 0 for size in value)


def _are_limits(value: Any, entries: list[str]) -> bool:
    return isinstance(value, dict) and all(
        key in entries and type(limit) in (int, float) and limit > 0 for key, limit in value.items()
    )


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) in (int, float) and math.isfinite(x) for x in value)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)


def _tensors(path: Path, expected: str) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CorruptArtifactError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptArtifactError(f"{path}: not a whole safetensors file ({error})") from None
    for name, value in tensors.items():
        if value.dtype not in (torch.float32, torch.float16):
            raise CorruptArtifactError(f"{path}: {name} is of {value.dtype}; policies hold float32 or float16")
    if content_hash(tensors) != expected:
        raise CorruptArtifactError(f"{path}: its contents are not those that were saved (SHA-256 differs)")
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CorruptArtifactError(f"{path}: {name} holds NaN or infinite weights")
    return tensors
