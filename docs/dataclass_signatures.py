"""Extension of Griffe: the constructors of our validated dataclasses, as those of the standard ones."""

from __future__ import annotations

from typing import Any

import griffe


class ValidatedDataclasses(griffe.Extension):
    """Read `validated_dataclass` as `dataclasses.dataclass`, so that signatures show all fields with their defaults."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        """Replace the decorator of a class."""
        for decorator in cls.decorators:
            if str(decorator.value).partition("(")[0] == "validated_dataclass":
                decorator.value = griffe.ExprName("dataclasses.dataclass")
