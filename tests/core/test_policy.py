"""Specs that fit each other, and those that do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rldistill.core.errors import SpecMismatchError
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import ObsPart, PolicySpec

HEAD = CategoricalHead((2,))


def alone(dtype: str) -> PolicySpec:
    return PolicySpec((3,), dtype, HEAD)


def in_a_dict(dtype: str) -> PolicySpec:
    return PolicySpec.from_parts((("a", ObsPart((3,), dtype)),), HEAD)


@pytest.mark.parametrize("spec", [alone, in_a_dict])
def test_floats_fit_floats_and_nothing_else(spec: Callable[[str], PolicySpec]) -> None:
    spec("float32").require_same_input(spec("float64"), "the teacher", "the environment")
    spec("float64").require_same_input(spec("float32"), "the teacher", "the environment")
    for dtype in ("uint8", "int64"):
        with pytest.raises(SpecMismatchError, match=f"{dtype}.* for the teacher"):
            spec(dtype).require_same_input(spec("float32"), "the teacher", "the environment")
