"""Configuration classes, whose annotations hold the type and the range of each field.

A configuration class is a frozen dataclass made with `validated_dataclass`. Pydantic checks its fields (for example
`epochs: Positive = 20`) whenever an instance is made, so that Python code and run files accept the same values.
"""

import dataclasses
import functools
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError, create_model
from pydantic.dataclasses import dataclass
from pydantic.errors import PydanticUserError
from pydantic_core import ArgsKwargs, CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from rldistill.core.errors import USER_ERRORS, ConfigError, RLDistillError, did_you_mean, failure, short_repr

T = TypeVar("T")

MAX_COUNT = 10**12
"""Upper limit of all counts, so that a typing error ends in a message and not in a lack of memory."""
MAX_TITLE_LENGTH = 60
Count = Annotated[int, Le(MAX_COUNT)]
Positive = Annotated[Count, Ge(1)]
NonNegative = Annotated[Count, Ge(0)]
NumThreads = Annotated[int, Ge(1), Le(1_024)]
NumEnvs = Annotated[int, Ge(1), Le(65_536)]
Seed = Annotated[int, Ge(0), Lt(1 << 32)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
FractionBelow1 = Annotated[float, Ge(0), Lt(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]
OpenFraction = Annotated[float, Gt(0), Lt(1)]
PYTHON_ONLY = object()
"""Marker, within `Annotated`, of a field that Python code sets and a run file cannot."""
EXPECTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least {min_length}",
    "dict_type": "keys and values",
    "dataclass_type": "keys and values",
    "tuple_type": "a list",
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "path_type": "a path",
    "json_invalid": "valid JSON",
    "string_pattern_mismatch": "letters, digits, - and _",
}
"""Expected values by pydantic's type of error."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, dataclasses.Field))
def validated_dataclass(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that checks its fields and raises ConfigError with the name of the field.

    Rules about several fields belong into `__post_init__`, as ConfigErrors that begin with the name of one of them.
    """
    hook = classmethod(lambda cls, source, handler: Checked().__get_pydantic_core_schema__(source, handler))
    cls.__get_pydantic_core_schema__ = hook  # type: ignore[attr-defined]
    made = cast(type[T], dataclass(cls, frozen=True, config=ConfigDict(arbitrary_types_allowed=True)))
    init = made.__init__

    @functools.wraps(init)
    def validate(self: T, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            first = error.errors()[0]
            position, *inside = first["loc"] or ("",)
            if isinstance(position, int):  # of a positional argument
                first["loc"] = (dataclasses.fields(cast(Any, made))[position].name, *inside)
            raise ConfigError(f"{cls.__name__}.{explain(first)}") from None

    made.__init__ = validate  # type: ignore[assignment]
    return made


class Checked:
    """Annotation of a dataclass: text is no number, 1 is not true, and an unknown key is an error."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _make_strict(handler.resolve_ref_schema(schema))
        return core_schema.no_info_wrap_validator_function(functools.partial(_check, source), schema)


OPTIONAL = {"stored": "optional"}
"""Metadata of a field that a file may lack."""


class Stored:
    """Annotation of a dataclass in a JSON file: an object with all of its fields but the optional, and no others.

    Args:
        make: Constructor, called with the fields; by default the annotated class.
        fields: Types of further fields that `make` takes.
    """

    def __init__(self, make: Callable[..., Any] | None = None, **fields: Any) -> None:
        self.make, self.fields = make, fields

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        hints = get_type_hints(source, include_extras=True)
        fields = self.fields | {field.name: hints[field.name] for field in dataclasses.fields(source)}
        config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
        defaults = {field.name: field.default for field in dataclasses.fields(source) if field.metadata == OPTIONAL}
        typed: dict[str, Any] = {name: (kind, defaults.get(name, ...)) for name, kind in fields.items()}
        model = create_model(source.__name__, __config__=config, **typed)

        def make(document: BaseModel) -> Any:
            try:
                return (self.make or source)(**dict(document))
            except RLDistillError as error:
                raise ValueError(str(error)) from None

        document = core_schema.no_info_after_validator_function(make, handler.generate_schema(model))
        return core_schema.json_or_python_schema(document, core_schema.is_instance_schema(source))


def _make_strict(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool", "str"):
            schema["strict"] = True
        if schema.get("type") == "float":
            schema["allow_inf_nan"] = False
        schema = [inner for key, inner in schema.items() if key not in ("default", "metadata")]
    for inner in schema if isinstance(schema, list) else ():
        _make_strict(inner)


def _check(cls: Any, value: Any, handler: Callable[[Any], Any]) -> Any:
    in_python = isinstance(value, ArgsKwargs)
    names = [field.name for field in dataclasses.fields(cls)] if in_python else run_file_keys(cls)
    given = value.kwargs or {} if isinstance(value, ArgsKwargs) else value
    for key in given if isinstance(given, Mapping) else ():
        if key not in names:
            hint = did_you_mean(str(key), names)
            raise invalid(f"unknown key.{hint} Known here: {', '.join(names) or 'none'}", str(key))
    try:
        return handler(value)
    except RLDistillError as error:  # from the class's own __post_init__
        raise from_error(error) from error


@functools.cache
def run_file_keys(cls: Any) -> list[str]:
    """Return the names of the fields of a dataclass that a run file may set."""
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    return [name for name in names if PYTHON_ONLY not in getattr(hints[name], "__metadata__", ())]


def from_error(error: RLDistillError, prefix: str = "") -> PydanticCustomError:
    """Return an error for pydantic's validators; the message `prefix` + `field: problem` names a field."""
    field, _, problem = str(error).removeprefix(prefix).partition(": ")
    return invalid(problem, field) if re.fullmatch(r"[\w.]+", field) else invalid(str(error))


def invalid(problem: str, field: str = "") -> PydanticCustomError:
    """Return an error, for pydantic's validators, about a value or about one field of it."""
    return PydanticCustomError("invalid", "{problem}", {"problem": problem, "field": field})


def require_titles(values: dict[str, T]) -> dict[str, T]:
    """Return values by name; raise an error of pydantic for a name that no table can show."""
    for name in values:
        if not name.isprintable() or name != name.strip() or not 0 < len(name) <= MAX_TITLE_LENGTH:
            problem = f"found the name {short_repr(name)}, expected 1 to {MAX_TITLE_LENGTH} printable characters"
            raise invalid(f"{problem} without spaces around them")
    return values


USER_CODE = {"user_code": True}
"""Context of `read` in which `module:Class` may be imported: for run files, which the user has written."""


def read(kind: Any, value: Any, context: dict[str, bool] | None = None) -> Any:
    """Return a value, for example of a run file, as an instance of a configuration class or of another type.

    Args:
        kind: the class, or any annotation of a field.
        value: an instance, or a mapping of the fields.
        context: `USER_CODE`, or None, in which case no code is imported.

    Raises:
        pydantic.ValidationError: a key or a value is not valid; `explain` makes a message of it.
    """
    return adapter(kind).validate_python(value, context=context)


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's adapter for the values that `read` accepts."""
    of_user = dataclasses.is_dataclass(kind) and not hasattr(kind, "__get_pydantic_core_schema__")
    return TypeAdapter(Annotated[kind, Checked()] if of_user else kind)


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
    """Annotation of a field that holds an instance of one of several dataclasses.

    A run file names the class with `key`, beside its fields: `{type: mlp, hidden: [8]}`, or `mlp` alone. A class of the
    user is named by `module:Class`.

    Attributes:
        key: the key of the name.
        classes: our classes by their names.
        methods: attributes that a class of the user must have.
        number: the class that a bare number stands for.
    """

    key: str
    classes: Mapping[str, type]
    methods: tuple[str, ...]
    number: type | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validate)

    def _validate(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        if isinstance(value, str):
            value = {self.key: value}
        elif self.number is not None and type(value) in (int, float):
            return read(self.number, {"value": value}, info.context)
        if not isinstance(value, Mapping):
            of_user = dataclasses.is_dataclass(value) and all(hasattr(value, method) for method in self.methods)
            if of_user or type(value) in self.classes.values():
                return value
            raise invalid(f"found {short_repr(value)}, expected keys and values, or one of {', '.join(self.classes)}")
        if (name := value.get(self.key)) is None:
            raise invalid("is missing", self.key)
        cls = self._class_of(str(name), user_code=info.context == USER_CODE)
        return read(cls, {key: item for key, item in value.items() if key != self.key}, info.context)

    def _class_of(self, name: str, user_code: bool) -> type:
        if name in self.classes:
            return self.classes[name]
        if ":" not in name:
            known = ", ".join(self.classes)
            raise invalid(f"there is no {name!r}.{did_you_mean(name, self.classes)} Known: {known}", self.key)
        if not user_code:
            raise invalid(f"{name}: only a run file may name code. In Python, give an instance.", self.key)
        try:
            cls = import_name(name, self.key)
        except RLDistillError as error:
            raise from_error(error) from error
        if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
            raise invalid(f"{name} is no dataclass; expected one with {', '.join(self.methods)}", self.key)
        if missing := [method for method in self.methods if not hasattr(cls, method)]:
            raise invalid(f"{name} has no {missing[0]}; expected {', '.join(self.methods)}", self.key)
        try:
            adapter(cls)
        except PydanticUserError as error:
            raise invalid(f"{name}: {str(error).splitlines()[0]}", self.key) from error
        return cls


def add_working_directory() -> None:
    """Add the working directory to the path of modules, as `python -m` does."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)


def import_name(name: str, where: str) -> Any:
    """Return the object at `module:Name`; raise ConfigError, which starts with `where`, if there is none.

    The name is one that a person wrote in a run file or on the command line, never one of a downloaded file.
    """
    module, _, attribute = name.partition(":")
    add_working_directory()
    try:
        imported = importlib.import_module(module)
    except USER_ERRORS as error:  # the module of a user may raise any error
        raise ConfigError(f"{where}: {name}: cannot be imported ({failure(error)})") from error
    if not hasattr(imported, attribute):
        raise ConfigError(f"{where}: there is no {attribute!r} in {module}.{did_you_mean(attribute, dir(imported))}")
    return getattr(imported, attribute)


def explain(error: ErrorDetails) -> str:
    """Return one of pydantic's errors as `where: problem`."""
    context = error.get("ctx", {})
    where = ".".join(filter(None, [*map(str, error["loc"]), context.get("field", "")]))
    kind, found = error["type"], f"found {short_repr(error['input'])}, expected"
    if kind == "invalid":
        problem = context["problem"]
    elif kind in ("missing", "missing_argument"):
        problem = "is missing"
    elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
        problem = "is an unknown field"
    elif kind == "value_error":
        problem = str(context["error"])
    elif kind in EXPECTED:
        limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
        problem = f"{found} {EXPECTED[kind].format(**limits)}"
    else:
        names = re.findall("'(.*?)'", str(context.get("expected", "")))
        hint = did_you_mean(str(error["input"]), names) if names else ""
        problem = f"{found} {re.sub('^Input should (be )?', '', error['msg'])}{hint and '.'}{hint}"
    return f"{where}: {problem}" if where else problem
