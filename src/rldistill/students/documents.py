"""The content of `policy.json`: its models, and configurations as JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from rldistill.core.errors import ConfigError, CorruptArtifactError, SpecMismatchError, short_repr
from rldistill.core.heads import ActionHead, HeadKind
from rldistill.core.spec import PolicySpec, Wrapper
from rldistill.io.documents import CHANGED, Document, read_value
from rldistill.policies.actor_critic import Actor
from rldistill.students import STUDENTS
from rldistill.students.features import FEATURES, Features
from rldistill.students.features.teacher import NOT_STORED

NETWORKS: dict[str, type[Any]] = {"actor": Actor, **STUDENTS}
FEATURE_NETWORKS = {name: kind for name, kind in NETWORKS.items() if getattr(kind, "hidden_as_features", False)}
VIEWS = (
    "ActionSmoothing", "ChannelsFirst", "FilterObservation", "FlattenObservation", "FrameSkip", "FrameStackObservation",
    "GrayscaleObservation", "History", "MaskVelocity", "RescaleAction", "RescaleObservation", "ReshapeObservation",
    "ResizeObservation", "StackFrames", "TimeAwareObservation", "TimeFeature", "TimeLimit",
)  # fmt: skip
"""Wrappers that a policy's file may name: none of them reads, writes or imports."""
USER_CLASSES: dict[str, type[Any]] = {}
"""Students and features of the user's own by `module:Class`; only `trust` adds to them, never a file."""


def _dtype(name: str) -> str:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"expected a dtype, found {name!r}")
    return name


Size = Annotated[int, Field(gt=0)]
Dtype = Annotated[str, AfterValidator(_dtype)]


class HeadDocument(Document):
    """Action head."""

    kind: HeadKind
    nvec: tuple[Size, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @model_validator(mode="after")
    def _consistent(self) -> HeadDocument:
        try:
            self.head()
        except SpecMismatchError as error:
            raise ValueError(str(error)) from None
        return self

    def head(self) -> ActionHead:
        """Return the head."""
        return ActionHead.from_json(self.model_dump())


class PartDocument(Document):
    """Entry of a dict observation."""

    shape: tuple[Size, ...]
    dtype: Dtype
    nvec: tuple[Size, ...]


class FramesDocument(Document):
    """Frame pipeline."""

    height: Size
    width: Size
    stack: Size
    skip: Size | tuple[Size, Size]
    max_pool: bool
    grayscale: bool
    padding: Literal["zero", "repeat"]


class WrapperDocument(Document):
    """Wrapper of the environment."""

    name: str
    kwargs: dict[str, Any]

    @model_validator(mode="after")
    def _harmless(self) -> WrapperDocument:
        if self.name not in VIEWS or not Wrapper(self.name, self.kwargs).has_small_kwargs:
            raise ValueError(f"{self.name} is not allowed; a policy may name {', '.join(VIEWS)} with short arguments")
        return self


class SpecDocument(Document):
    """Observations and actions of a policy."""

    obs_shape: tuple[Size, ...]
    obs_dtype: Dtype
    head: HeadDocument
    frames: FramesDocument | None
    nvec: tuple[Size, ...]
    parts: tuple[tuple[str, PartDocument], ...]
    view: tuple[WrapperDocument, ...]
    env_kwargs: tuple[tuple[str, bool | int | float], ...]

    @model_validator(mode="after")
    def _dict_is_a_vector(self) -> SpecDocument:
        if self.parts and self.obs_dtype != "float32":
            raise ValueError(f"obs_dtype: expected float32 for a dict observation, found {self.obs_dtype}")
        return self

    def spec(self) -> PolicySpec:
        """Return the spec."""
        return PolicySpec.from_json(self.model_dump())


class PolicyDocument(Document):
    """The whole file."""

    schema_version: Literal[1] = Field(alias="schema")
    student: str
    config: dict[str, Any]
    spec: SpecDocument
    obs_clip: dict[str, Annotated[float, Field(gt=0)]]
    value: bool
    provenance: dict[str, Any]
    sha256: str

    @field_validator("obs_clip")
    @classmethod
    def _clips_entries(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if "spec" in info.data and (unknown := [*(value.keys() - info.data["spec"].spec().entries.keys())]):
            raise ValueError(f"{unknown[0]!r} is no entry of the observation")
        return value


def write_config(config: Any) -> dict[str, Any]:
    """Return the stored fields of a configuration as JSON values; features and networks in it have a `type`.

    Raises:
        ConfigError: Features of a network of the user's own, which a file could not name.
    """
    document = {}
    for field in stored_fields(config):
        value = getattr(config, field.name)
        if isinstance(value, ActionHead):
            value = value.to_json()
        elif isinstance(value, Features):
            value = {"type": kind_name(value, FEATURES), **write_config(value)}
        elif field.name == "network" and value is not None:
            if type(value) not in FEATURE_NETWORKS.values():
                known = ", ".join(FEATURE_NETWORKS)
                raise ConfigError(f"features.network: a {type(value).__name__} cannot be stored. Use {known}.")
            value = {"type": kind_name(value, FEATURE_NETWORKS), **write_config(value)}
        document[field.name] = value
    return document


def kind_name(config: Any, kinds: Mapping[str, type[Any]]) -> str:
    """Return the name of a configuration's class: its own in `kinds`, `module:Class` for a class of the user's."""
    cls = type(config)
    return next((name for name, kind in kinds.items() if kind is cls), f"{cls.__module__}:{cls.__qualname__}")


def read_config(kind: type[Any], value: dict[str, Any], path: Path, where: str = "config") -> Any:
    """Return a configuration of `kind` from the JSON values of its stored fields.

    Features and networks in it are of the kinds in our tables, or of classes that the user trusts: a name in a file
    never imports code. A field with a default may be missing, because older files do not hold fields that were added
    later; a damaged name is refused as an unknown field.

    Raises:
        CorruptArtifactError: A field without a default is missing, or a field is unknown or not valid.
    """
    fields = {field.name: field for field in stored_fields(kind)}
    for name in [*fields, *value]:
        if name not in fields:
            raise CorruptArtifactError(f"{path}: {where}.{name} is no field of {kind.__name__}. {CHANGED}")
        if name not in value and fields[name].default is fields[name].default_factory is dataclasses.MISSING:
            raise CorruptArtifactError(f"{path}: {where}.{name} is missing. {CHANGED}")
    names = [name for name in fields if name in value]
    hints, values = get_type_hints(kind, include_extras=True), {}
    trusted = {name: cls for name, cls in USER_CLASSES.items() if issubclass(cls, Features)}
    for name in names:
        field = f"{where}.{name}"
        if name == "features" and kind is not Actor:
            values[name] = _read_tagged({**FEATURES, **trusted}, value[name], path, field)
        elif name == "network":
            values[name] = _read_tagged(FEATURE_NETWORKS, value[name], path, field)
        elif name == "head":
            values[name] = read_value(HeadDocument, value[name], path, field).head()
        else:
            values[name] = read_value(hints[name], value[name], path, field)
    try:
        return kind(**values)
    except (ConfigError, SpecMismatchError) as error:
        raise CorruptArtifactError(f"{path}: {where}.{error}") from None


def _read_tagged(kinds: Mapping[str, type[Any]], value: Any, path: Path, where: str) -> Any:
    kind = value.get("type") if isinstance(value, dict) else value
    if not isinstance(kind, str) or kind not in kinds:
        raise CorruptArtifactError(
            f"{path}: {where}: expected one of {', '.join(kinds)}, found {short_repr(kind)}. {CHANGED}"
        )
    return read_config(kinds[kind], {key: item for key, item in value.items() if key != "type"}, path, where)


def stored_fields(config: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields of a configuration that its policy's file holds."""
    return [field for field in dataclasses.fields(config) if field.metadata != NOT_STORED]
