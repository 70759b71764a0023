"""Policies on disk: `policy.safetensors` and `policy.json`, read without executing anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, model_validator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from rldistill.core.arguments import are_small
from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError, error_text, short_repr
from rldistill.core.fields import PositiveFloat, Stored
from rldistill.core.heads import ActionHead
from rldistill.core.spec import PolicySpec
from rldistill.io.atomic import CHANGED, Document, read_json, read_value, write_atomic, write_json
from rldistill.io.tensors import content_hash, load_safetensors
from rldistill.policies.actor_critic import Actor
from rldistill.policies.layers import ACTIVATIONS
from rldistill.policies.network import NetworkPolicy
from rldistill.students import STUDENTS
from rldistill.students.features import FEATURES, Features
from rldistill.students.features.teacher import NOT_STORED
from rldistill.students.keras import FILE, Keras, KerasStudent, keras_student
from rldistill.students.multi_task import MultiTask
from rldistill.students.team import MEMBERS, Team
from rldistill.students.tree import TreePolicy

SCHEMA: Literal[1] = 1
TENSORS, DOCUMENT = "policy.safetensors", "policy.json"
NETWORKS: dict[str, type[Any]] = {"actor": Actor, **STUDENTS}
FEATURE_NETWORKS = {name: kind for name, kind in NETWORKS.items() if getattr(kind, "hidden_as_features", False)}
NAMES = {kind: name for name, kind in [*NETWORKS.items(), *FEATURES.items()]}
VIEWS = (
    "ActionSmoothing", "ChannelsFirst", "FilterObservation", "FlattenObservation", "FrameSkip", "FrameStackObservation",
    "GrayscaleObservation", "History", "LastAction", "MaskVelocity", "PadObservation", "RescaleAction",
    "RescaleObservation", "ReshapeObservation", "ResizeObservation", "StackFrames", "TimeAwareObservation",
    "TimeFeature", "TimeLimit", "WorldParameters",
)  # fmt: skip
"""Wrappers that a policy's file may name: none of them reads, writes or imports."""
USER_CLASSES: dict[str, type[Any]] = {}
"""Students and features of the user's own by `module:Class`; only `trust` adds to them, never a file."""


class StoredProvenance(Document):
    """Entries of a policy's provenance that are used; there may be more, and all may be missing."""

    model_config = ConfigDict(extra="allow")

    env_steps: NonNegativeInt = 0
    mean_return: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class PolicyDocument(Document):
    """The content of `policy.json`."""

    schema_version: Literal[1] = Field(alias="schema")
    student: str
    config: dict[str, Any]
    spec: Annotated[PolicySpec, Stored()]
    obs_clip: dict[str, PositiveFloat]
    value: bool
    provenance: StoredProvenance
    weights_sha256: str

    @model_validator(mode="after")
    def _consistent(self) -> PolicyDocument:
        for wrapper in self.spec.view:
            if wrapper.name not in VIEWS or not are_small(wrapper.kwargs):
                known = ", ".join(VIEWS)
                raise ValueError(
                    f"spec.view: {wrapper.name} is not allowed; a policy may name {known} with short arguments"
                )
        if unknown := [*(self.obs_clip.keys() - self.spec.entries.keys())]:
            raise ValueError(f"obs_clip: {unknown[0]!r} is no entry of the observation")
        return self


def trust(kind: type[Any]) -> None:
    """Let policy files name your own class of students, features or activations, which `load_policy` then builds.

    Raises:
        ConfigError: A class of another kind.
    """
    if issubclass(kind, nn.Module):
        ACTIVATIONS[_name(kind)] = kind
    elif not callable(getattr(kind, "build", None)):
        raise ConfigError(f"{kind.__name__} has no build. Use a class of students or features, such as rldistill.Mlp.")
    elif kind not in NAMES:
        USER_CLASSES[_name(kind)] = kind


def _name(kind: type[Any]) -> str:
    return NAMES.get(kind, f"{kind.__module__}:{kind.__qualname__}")


def trust_student(student: object) -> None:
    """Trust the class of a student, that of its features if it has some, and that of its members or networks."""
    trust(type(student))
    if isinstance(student, Team | MultiTask):
        trust_student(student.student)
    if isinstance(features := getattr(student, "features", None), Features):
        trust(type(features))


def save_policy(policy: NetworkPolicy, folder: Path, provenance: dict[str, Any], half: bool = False) -> None:
    """Write a policy; `half` stores weights as float16, which loading converts to float32.

    Raises:
        ConfigError: Weights that are not finite, or are beyond float16 with `half`; a policy that needs code of the
            user's own, which a file must not name.
    """
    policy.require_storable()
    tensors = stored_tensors(policy)
    if half:
        # Not the buffers: a small obs_std would become 0, and a large obs_mean infinite.
        tensors |= {name: tensors[name].half() for name, _ in policy.named_parameters() if name in tensors}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            dtype = str(value.dtype).removeprefix("torch.")
            raise ConfigError(f"{folder}: not saved, since {name} has values that are not finite in {dtype}")
    document = {
        "schema": SCHEMA,
        "student": _name(type(policy.config)),
        "config": _config_to_json(policy.config),
        "spec": policy.spec.to_json(),
        "obs_clip": policy.obs_clip,
        "value": policy.has_value,
        "provenance": provenance,
        "weights_sha256": content_hash(tensors),
    }
    if isinstance(policy, KerasStudent):
        policy.save_model(folder)
    write_atomic(folder / TENSORS, lambda temporary: save_file(tensors, temporary))
    write_json(folder / DOCUMENT, document)


def read_document(folder: Path) -> PolicyDocument:
    """Read the `policy.json` of a folder; raise CorruptArtifactError if it is missing, changed or not valid."""
    path = folder / DOCUMENT
    value = read_json(path)
    if type(schema := value.get("schema")) is not int or schema != SCHEMA:
        raise CorruptArtifactError(f"{path}: schema {schema}; this version reads schema {SCHEMA}")
    return PolicyDocument.parse(value, path)


def load_native(folder: Path, device: str = "cpu") -> NetworkPolicy:
    """Read a policy that `save_policy` wrote.

    Raises:
        CorruptArtifactError: A file is missing, changed or damaged; the message has the file and the field.
    """
    path, document = folder / DOCUMENT, read_document(folder)
    kinds = NETWORKS | {name: kind for name, kind in USER_CLASSES.items() if not issubclass(kind, Features)}
    if document.student not in kinds:
        raise CorruptArtifactError(
            f"{path}: student: found {document.student!r}, expected one of {', '.join(kinds)}, or one of your own "
            "after rldistill.trust(Class)"
        )
    config = _config_from_json(kinds[document.student], document.config, path)
    policy: NetworkPolicy
    try:
        if isinstance(config, Keras):
            policy = keras_student(config, document.spec, folder / FILE)
        else:
            with torch.device("meta"):  # which takes no memory and draws no random number
                policy = config.build(document.spec)
        if document.value:
            policy.add_value("meta")
    except (ConfigError, SpecMismatchError) as error:
        raise CorruptArtifactError(f"{path}: config: {error}") from None
    except (TypeError, ValueError, OverflowError, RuntimeError, KeyError, AttributeError):
        raise CorruptArtifactError(f"{path}: config: no network can have these sizes") from None
    tensors = _read_tensors(folder / TENSORS, document.weights_sha256, policy)
    try:
        policy.load_state_dict(tensors, assign=True)
        if {type(config), type(getattr(config, "features", None))} & {*USER_CLASSES.values()}:
            # Code of the user's own may keep tensors that no file holds, so it is built again, now with their values.
            with torch.random.fork_rng(devices=[]):
                policy = config.build(document.spec)
                if document.value:
                    policy.add_value()
            policy.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CorruptArtifactError(f"{folder / TENSORS}: not the weights of {path}: {error_text(error)}") from None
    policy.obs_clip = document.obs_clip
    if isinstance(policy, TreePolicy):
        policy.require_valid(str(folder / TENSORS))
    policy.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return policy.eval()


def stored_tensors(policy: NetworkPolicy) -> dict[str, Tensor]:
    """Return the tensors of a policy that its file holds."""
    tensors = policy.state_dict().items()
    return {name: value.detach().cpu().contiguous() for name, value in tensors if "feature_head." not in name}


def _config_to_json(config: Any) -> dict[str, Any]:
    """Return the stored fields of a configuration as JSON values; features and networks in it have a `type`."""
    network = getattr(config, "network", None)
    if network is not None and type(network) not in FEATURE_NETWORKS.values():
        known = ", ".join(FEATURE_NETWORKS)
        raise ConfigError(f"features.network: a {type(network).__name__} cannot be stored. Use {known}.")
    return {field.name: _to_json(getattr(config, field.name)) for field in _stored_fields(config)}


def _to_json(value: Any) -> Any:
    if isinstance(value, ActionHead | PolicySpec):
        return value.to_json()
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _to_json(item) for name, item in value.items()}
    if hasattr(value, "build"):
        return {"type": _name(type(value)), **_config_to_json(value)}
    return value


def _config_from_json(kind: type[Any], value: dict[str, Any], path: Path, where: str = "config") -> Any:
    """Return a configuration of `kind` from the JSON values of its stored fields.

    Features and networks in it are of the kinds in our tables, or of classes that the user trusts: a name in a file
    never imports code. A field with a default may be missing, because older files do not hold fields that were added
    later; a damaged name is refused as an unknown field.

    Raises:
        CorruptArtifactError: A field without a default is missing, or a field is unknown or not valid.
    """
    fields = {field.name: field for field in _stored_fields(kind)}
    for name in [*fields, *value]:
        if name not in fields:
            raise CorruptArtifactError(f"{path}: {where}.{name} is no field of {kind.__name__}. {CHANGED}")
        if name not in value and fields[name].default is fields[name].default_factory is dataclasses.MISSING:
            raise CorruptArtifactError(f"{path}: {where}.{name} is missing. {CHANGED}")
    hints, values = get_type_hints(kind, include_extras=True), {}
    tagged: dict[str, Mapping[str, type[Any]]] = {"network": FEATURE_NETWORKS}
    if kind is not Actor:  # whose features are a number
        tagged["features"] = FEATURES | {name: own for name, own in USER_CLASSES.items() if issubclass(own, Features)}
    if kind in (Team, MultiTask):
        tagged |= dict.fromkeys(("student", "members"), MEMBERS | {"actor": Actor} | USER_CLASSES)
    for name, item in value.items():
        field = f"{where}.{name}"
        if name not in tagged:
            values[name] = read_value(hints[name], item, path, field)
        elif name == "members" and isinstance(item, list):
            parts = enumerate(item)
            values[name] = tuple(_tagged_from_json(tagged[name], part, path, f"{field}.{n}") for n, part in parts)
        else:
            values[name] = _tagged_from_json(tagged[name], item, path, field)
    try:
        return kind(**values)
    except (ConfigError, SpecMismatchError) as error:
        raise CorruptArtifactError(f"{path}: {where}.{error}") from None


def _tagged_from_json(kinds: Mapping[str, type[Any]], item: Any, path: Path, field: str) -> Any:
    """Return the configuration whose `type` is one of `kinds`; see `_config_from_json`."""
    tag = item.get("type") if isinstance(item, dict) else None
    if not isinstance(tag, str) or tag not in kinds:
        known, found = ", ".join(kinds), short_repr(item if tag is None else tag)
        raise CorruptArtifactError(f"{path}: {field}: expected one of {known}, found {found}. {CHANGED}")
    return _config_from_json(kinds[tag], {key: part for key, part in item.items() if key != "type"}, path, field)


def _stored_fields(config: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(config) if field.metadata != NOT_STORED]


def _read_tensors(path: Path, expected_hash: str, policy: NetworkPolicy) -> dict[str, Tensor]:
    try:
        tensors, _ = load_safetensors(path)
    except (FileNotFoundError, IsADirectoryError):
        raise CorruptArtifactError(f"{path}: there is no such file") from None
    except (SafetensorError, ValueError) as error:
        raise CorruptArtifactError(f"{path}: not a complete safetensors file ({error})") from None
    dtypes = {name: value.dtype for name, value in policy.state_dict().items()}
    for name, value in tensors.items():
        dtype = dtypes.setdefault(name, torch.float32)
        if value.dtype != dtype and (dtype, value.dtype) != (torch.float32, torch.float16):
            expected = "float32 or float16" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
            raise CorruptArtifactError(f"{path}: {name} is of {value.dtype}; expected {expected}")
    if content_hash(tensors) != expected_hash:
        raise CorruptArtifactError(f"{path}: its content is not the one that was saved (SHA-256 differs)")
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise CorruptArtifactError(f"{path}: {name} holds NaN or infinite weights")
    return {name: value.to(dtypes[name]) for name, value in tensors.items()}
