"""JSON Schema of run files, for editors, and the same as tables for people."""

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from rldistill.core.fields import MAX_COUNT, OneOf, adapter, run_file_keys
from rldistill.losses.objective import Term
from rldistill.recipes import NAMES, TABLES, to_document
from rldistill.recipes.job import Run


def run_schema() -> dict[str, Any]:
    """Return the JSON Schema of a run file."""
    schema = adapter(Run).json_schema(schema_generator=_RunFileSchema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "rldistill run file"}


class _RunFileSchema(GenerateJsonSchema):
    """Generator that describes classes by their docstrings and writes defaults as run files do."""

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        cls: Any = schema["cls"]
        result, texts = super().dataclass_schema(schema), dict[str, str]()
        for base in reversed(cls.__mro__):
            doc = inspect.cleandoc(base.__doc__ or "")
            section = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", doc, re.MULTILINE)
            for entry in re.split(r"\n(?=    \w)", section[1] if section else ""):
                name, _, texts[name] = " ".join(entry.split()).partition(": ")
        properties = {
            key: {**result["properties"][key], "description": texts.get(key, "")} for key in run_file_keys(cls)
        }
        summary = re.split(r"\n\n(?=\w+:\n)", inspect.getdoc(cls) or "")[0]
        result |= {"properties": properties, "description": summary, "additionalProperties": False}
        if cls is not Term:
            return result
        for choice in properties["loss"]["anyOf"]:  # a run file has the weight of a term beside the fields of its loss
            if "$ref" in choice:
                self._definition(choice["$ref"])["properties"]["weight"] = properties["weight"]
        return dict(properties["loss"])

    def _definition(self, reference: Any) -> dict[str, Any]:
        definition = self.get_schema_from_definitions(reference)
        assert definition is not None
        return definition

    def function_plain_schema(self, schema: core_schema.PlainValidatorFunctionSchema) -> JsonSchemaValue:
        owner = getattr(schema["function"]["function"], "__self__", None)
        if not isinstance(owner, OneOf):
            return super().function_plain_schema(schema)
        names, choices = [], []
        for name, cls in owner.classes.items():
            choices.append(self.generate_inner(adapter(cls).core_schema))
            definition = self._definition(choices[-1]["$ref"])
            if definition.get("required", [owner.key]) == [owner.key]:
                names.append(name)
            if owner.key not in definition["properties"]:
                definition["properties"] = {owner.key: {"const": name}, **definition["properties"]}
                definition["required"] = [owner.key, *definition.get("required", [])]
        own = {"type": "object", "properties": {owner.key: {"type": "string", "pattern": ":"}}, "required": [owner.key]}
        number = [{"type": "number"}] if owner.number is not None else []
        title = next(title for title, table in TABLES.items() if owner.classes.items() <= table.items())
        return {"$comment": title, "anyOf": [*number, {"enum": names}, *choices, own]}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # a title would repeat the key

    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
        return {}  # of fields that a run file cannot set

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        result = super().default_schema(schema)
        default = schema.get("default")
        if dataclasses.is_dataclass(default) and type(default) not in NAMES:
            result.pop("default", None)  # a section, whose keys have their own defaults
        return result

    def encode_default(self, dft: Any) -> Any:
        return to_document(dft)


def run_tables() -> str:
    """Return the keys of run files as tables in Markdown."""
    schema = run_schema()
    parts, sections = [INTRODUCTION, *_section("## Top level", schema)], [*_sections(schema["properties"])]
    done: set[str] = set()
    while sections:
        title, node = sections.pop(0)
        if title in done:
            continue
        done.add(title)
        if title in TABLES:
            parts.append(f"## {title}")
            for (name, _), choice in zip(TABLES[title].items(), filter(_reference, node["anyOf"]), strict=True):
                definition = schema["$defs"][_reference(choice)]
                parts += _section(f"### {title}: `{name}`", definition)
                sections += _sections(definition["properties"])
        else:
            definition = schema["$defs"][title]
            if "properties" in definition:
                parts += _section(f"## {title}", definition)
            sections = [*_sections(definition), *sections]
    return "\n\n".join(filter(None, parts)).replace("[Term](#term)", "[losses](#losses)") + "\n"


INTRODUCTION = """\
# Run files

`rldistill schema --markdown` generates this page from the code. `rldistill schema` prints the same as JSON Schema, in
`docs/run.schema.json`. Editors complete and check a run file whose first line names that file, as in `examples/`.

A run file is YAML. `distill.epochs=3` on the command line and `RLDISTILL__DISTILL__EPOCHS=3` in the environment
override a key. Recipes, losses, schedules, students and features are selected by a name: `mlp`, or with settings
`{type: mlp, hidden: [8]}`. `module:Class` in place of the name selects a class of your own."""


def _sections(node: Any) -> Iterator[tuple[str, Any]]:
    """Return the titles and nodes of the sections to which a node of the schema refers."""
    if isinstance(node, dict):
        if node.get("$comment") in TABLES:
            yield node["$comment"], node
            return
        if reference := _reference(node):
            yield reference, node
        node = [*node.values()]
    for item in node if isinstance(node, list) else ():
        yield from _sections(item)


def _reference(node: Any) -> str:
    return str(node.get("$ref", "")).rpartition("/")[2]


def _section(title: str, definition: dict[str, Any]) -> list[str]:
    rows = ["| Key | Value | Default | Description |", "| --- | --- | --- | --- |"]
    for key, field in definition["properties"].items():
        if "const" in field:
            continue
        default = "required" if key in definition.get("required", ()) else ""
        if "default" in field:
            default = f"`{field['default'] if isinstance(field['default'], str) else json.dumps(field['default'])}`"
        rows.append(f"| `{key}` | {_kind(field)} | {default} | {field['description'].replace('|', chr(92) + '|')} |")
    return [title, definition["description"], "\n".join(rows) if len(rows) > 2 else ""]


def _kind(node: dict[str, Any]) -> str:
    """Return the type and the range of a value in words."""
    if node.get("$comment") in TABLES:
        return f"[{node['$comment'].lower()}](#{node['$comment'].lower()})"
    if reference := _reference(node):
        return f"[{reference}](#{reference.lower()})"
    if "anyOf" in node:
        return " or ".join(_kind(choice) for choice in node["anyOf"])
    if "enum" in node:
        return ", ".join(f"`{name}`" for name in node["enum"])
    if "additionalProperties" in node and node["additionalProperties"] is not True:
        return f"mapping of {_kind(node['additionalProperties'])} by name"
    if "prefixItems" in node:
        return f"[{', '.join(_kind(item) for item in node['prefixItems'])}]"
    words = {"array": "list", "object": "mapping"}.get(node.get("type", ""), node.get("type", "any"))
    words += f" of {_kind(node['items'])}" if "items" in node else ""
    return ", ".join(
        [words, *(f"{word} {node[key]}" for key, word in LIMITS.items() if node.get(key, MAX_COUNT) < MAX_COUNT)]
    )


LIMITS = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}
