"""Plain dataclasses as pydantic schemas, so that the fields of a stage are declared once, in the stage.

A field's type says what a run file may hold: an integer is never taken from a string, a key that is not a field is an
error, and a union of dataclasses is told apart by a tag (`type: cnn`). Sizes are at least 1 and rates stay in range.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    GetCoreSchemaHandler,
    PlainValidator,
    Strict,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError

from rldistill.core.errors import RLDistillError, did_you_mean
from rldistill.io.imports import import_name

NON_NEGATIVE = {"critic_warmup", "noop_max", "patience", "alternating_passes", "regions", "seed", "steps_per_round"}
MOST_OF_ALL = 10**12
MOST = {"num_threads": 1_024, "workers": 1_024, "num_envs": 65_536}
"""What whole numbers may be, so that a slip of the finger is an answer and not a crash."""
LIMITS: dict[str, tuple[Any, ...]] = {
    "epsilon": (Ge(0), Le(1)),
    "beta": (Ge(0), Le(1)),
    "gamma": (Ge(0), Le(1)),
    "ema_decay": (Ge(0), Lt(1)),
    "learning_rate": (Gt(0),),
    "temperature": (Gt(0),),
    "delta": (Gt(0),),
    "clip": (Gt(0),),
    "max_grad_norm": (Gt(0),),
    "margin": (Gt(0),),
    "l2": (Gt(0),),
    "bandwidth": (Gt(0),),
    "until": (Gt(0), Le(1)),
    "weight_decay": (Ge(0),),
}


class Strictly(BaseModel):
    """A mapping in which an unknown key is an error that names the nearest right one."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        for key in value:
            if key not in cls.model_fields:
                hint = did_you_mean(str(key), cls.model_fields)
                raise bad_key(str(key), f"unknown key.{hint} Known here: {', '.join(cls.model_fields) or 'none'}")
        return value


def bad_key(key: str, message: str) -> PydanticCustomError:
    """An error about `key` of the mapping that is being validated."""
    return PydanticCustomError("bad_key", "{message}", {"message": message, "key": key})


@dataclasses.dataclass(frozen=True)
class Tagged:
    """The classes that a tag tells apart: `key` is the tag's name, `names` its values.

    Where `needs` says what a class has to have, the tag may also be `module:Class`, a frozen dataclass of the user's.
    """

    key: str
    names: Mapping[str, type]
    needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Schema:
    """What is needed beyond the dataclasses themselves.

    `unions` hold the tagged classes, `numbers` the classes that a bare number stands for, `texts` those that a bare
    text stands for, with the field that it is, `flat` the classes whose one tagged field is written inline
    (`{name: forward_kl, weight: 1}` for `Term(ForwardKL(), 1)`).
    """

    unions: tuple[Tagged, ...] = ()
    numbers: tuple[type, ...] = ()
    texts: Mapping[type, str] = dataclasses.field(default_factory=dict)
    flat: Mapping[type, str] = dataclasses.field(default_factory=dict)
    checks: Mapping[type, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)

    @staticmethod
    def members(union: Any) -> tuple[type, ...]:
        """The classes of a union."""
        return get_args(union)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """`Annotated[CollectConfig, schema]` is a mapping in the file and a `CollectConfig` once read."""
        return handler.generate_schema(self.of(source))

    def of(self, annotation: Any, name: str = "") -> Any:
        """The pydantic annotation of a dataclass, or of anything that one of its fields may be."""
        origin, args = get_origin(annotation), get_args(annotation)
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            return self._record(annotation, {})
        if origin in (Union, types.UnionType):
            return self._union(args, name)
        if origin is tuple:
            parts = tuple(arg if arg is Ellipsis else self.of(arg, name) for arg in args)
            return origin[parts]
        if origin in (dict, list):
            return origin[tuple(self.of(arg, name) for arg in args)]
        if origin is Annotated:
            inner = self.of(args[0], name)
            for extra in args[1:]:
                inner = Annotated[inner, extra]
            return inner
        return _scalar(annotation, name)

    def _union(self, members: tuple[Any, ...], name: str) -> Any:
        records = [member for member in members if dataclasses.is_dataclass(member)]
        choices = [self.of(member, name) for member in members if member not in records]
        if len(records) == 1:
            choices.append(self._record(records[0], {}))
        elif records:
            choices.append(self._tagged(records, name))
        return Union[tuple(choices)]  # noqa: UP007

    def _tagged(self, records: list[Any], name: str) -> Any:
        union = next(union for union in self.unions if set(records) <= set(union.names.values()))
        tags = {tag: record for tag, record in union.names.items() if record in records}
        choices = [Annotated[self._record(record, {union.key: (tag, ...)}), Tag(tag)] for tag, record in tags.items()]
        number = next((record for record in records if record in self.numbers), None)
        if number is not None:
            choices.append(Annotated[_scalar(float, name), AfterValidator(number), Tag("a number")])

        if union.needs:
            choices.append(Annotated[Any, PlainValidator(lambda value: self._own(value, union)), Tag("module:Class")])

        def tag_of(value: Any) -> str | None:
            if isinstance(value, Mapping):
                tag = str(value[union.key]) if union.key in value else None
                return "module:Class" if tag is not None and ":" in tag and union.needs else tag
            return "a number" if number is not None else None

        tag_of.__name__ = union.key  # what pydantic calls it in its errors
        by_name = BeforeValidator(partial(_named, union.key))
        return Annotated[Union[tuple(choices)], Discriminator(tag_of), by_name]  # noqa: UP007

    def _own(self, value: Mapping[str, Any], union: Tagged) -> Any:
        """What the user's own class makes of its fields, which are checked as those of ours are."""
        name = value[union.key]
        try:
            record = import_name(name, union.key)
        except RLDistillError as error:
            raise bad_key(union.key, str(error).removeprefix(f"{union.key}: ")) from error
        if not isinstance(record, type) or not dataclasses.is_dataclass(record):
            raise bad_key(union.key, f"{name} is no dataclass; expected one with {', '.join(union.needs)}")
        if missing := [need for need in union.needs if not hasattr(record, need)]:
            raise bad_key(union.key, f"{name} has no {missing[0]}; expected {', '.join(union.needs)}")
        try:
            return TypeAdapter(self._record(record, {union.key: (name, ...)})).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or first.get("ctx", {}).get("key", union.key)
            raise bad_key(where, first["msg"]) from error

    def _record(self, record: Any, tag: Mapping[str, tuple[str, Any]]) -> Any:
        hints = get_type_hints(record, include_extras=True)
        fields: dict[str, Any] = {key: (str, default) for key, (_, default) in tag.items()}
        for field in dataclasses.fields(record):
            kind = self.of(hints[field.name], field.name)
            if _holds_records(hints[field.name]) and field.default != ():
                kind = Annotated[kind, MinLen(1)]
            fields[field.name] = (kind, _default(field))
        flat = self.flat.get(record)
        base = _inlined(flat, set(fields) - {flat}) if flat else Strictly
        model = create_model(record.__name__, __base__=base, **fields)
        check = self.checks.get(record, lambda value: value)

        def build(value: Any) -> Any:
            names = [field.name for field in dataclasses.fields(record) if field.name in value.model_fields_set]
            try:
                return check(record(**{name: getattr(value, name) for name in names}))
            except RLDistillError as error:
                raise PydanticCustomError("refused", "{message}", {"message": str(error)}) from error

        if record in self.texts:
            return Annotated[model, AfterValidator(build), BeforeValidator(partial(_named, self.texts[record]))]
        return Annotated[model, AfterValidator(build)]


def _named(key: str, value: Any) -> Any:
    """A bare name is the class of that name, or the class with that field, and its defaults."""
    return {key: value} if isinstance(value, str) else value


def _holds_records(annotation: Any) -> bool:
    return get_origin(annotation) is tuple and dataclasses.is_dataclass(get_args(annotation)[0])


def _default(field: dataclasses.Field[Any]) -> Any:
    # Only whether there is one: what it is stays with the dataclass.
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return FieldInfo() if required else FieldInfo(default=None)


def _scalar(annotation: Any, name: str) -> Any:
    if annotation is bool or annotation is str:
        return Annotated[annotation, Strict()]
    if annotation is int:
        return Annotated[int, Strict(), Ge(0 if name in NON_NEGATIVE else 1), Le(MOST.get(name, MOST_OF_ALL))]
    if annotation is float:
        scalar: Any = Annotated[float, Strict(), FieldInfo(allow_inf_nan=False)]
        for limit in LIMITS.get(name, ()):
            scalar = Annotated[scalar, limit]
        return scalar
    if annotation is Path:
        return Path
    return annotation


def _inlined(inner: str, own: set[str]) -> type[Strictly]:
    """A base whose keys, but for its own, are those of its field `inner`."""

    class Inlined(Strictly):
        @model_validator(mode="before")
        @classmethod
        def _nest(cls, value: Any) -> Any:
            if isinstance(value, str):
                return {inner: value}
            if not isinstance(value, Mapping) or inner in value:
                return value
            nested = {key: item for key, item in value.items() if key not in own}
            return {inner: nested, **{key: item for key, item in value.items() if key in own}}

    return Inlined
