"""Texts in C and JavaScript that belong to this package: whole files, and templates to fill."""

from functools import cache
from importlib import resources
from typing import Any

import jinja2


def read_text(name: str) -> str:
    """Return the text of a file."""
    return (resources.files("rldistill.exporters") / "templates" / name).read_text("utf-8")


def render(name: str, **values: Any) -> str:
    """Return the text of a template, filled with values."""
    return _templates().get_template(f"{name}.jinja").render(values)


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.PackageLoader("rldistill", "exporters/templates")
    options: dict[str, Any] = {"trim_blocks": True, "keep_trailing_newline": True}
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **options)
