"""Which students a search tries: families and sizes, by what there is to see."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rldistill.core.errors import ConfigError
from rldistill.core.spec import PolicySpec
from rldistill.students import STUDENTS, AnyStudent, Linear, Mlp, Tree
from rldistill.students.budget import fit_budget
from rldistill.students.features import FEATURES, AnyFeatures, Fourier, RandomConv
from rldistill.students.student import capability

BUDGETS = (3_000, 6_000, 10_000, 16_000, 25_000, 40_000, 62_000)
"""Parameters of the convolutional students that are tried on pictures."""
WIDTHS = (4, 8, 12, 16, 24, 32, 48, 64)
DEPTHS = (4, 6, 8, 10, 12)


def candidates(spec: PolicySpec, own: Mapping[str, AnyStudent], most: int | None) -> dict[str, AnyStudent]:
    """The students of a run file, and others of every size below `most` parameters, the teacher's, where it is known.

    On pictures: linear ones, on the pixels and on random convolutions, and cnns. On vectors: linear ones, on the
    observation and on random Fourier features, trees, and mlps of two layers.
    """
    found: dict[str, AnyStudent] = {"linear": Linear()}
    if len(spec.obs_shape) == 3:
        found["linear-conv"] = Linear(RandomConv())
        for budget in BUDGETS:
            try:
                found[f"cnn-{budget // 1000}k"] = fit_budget(spec, "cnn", parameters=budget)
            except ConfigError:  # no cnn is that small on pictures of this size
                continue
    else:
        found["linear-fourier"] = Linear(Fourier(256))
        found |= {f"tree-{depth}": Tree(depth) for depth in DEPTHS}
        found |= {f"mlp-{width}": Mlp((width, width)) for width in WIDTHS}
    if any(capability(student, "recurrent") for student in own.values()):
        return dict(own)
    new = {name: student for name, student in found.items() if student not in own.values()}
    small = {name: student for name, student in new.items() if most is None or _parameters(student, spec) < most}
    return {**small, **own}


def _parameters(student: AnyStudent, spec: PolicySpec) -> int:
    if capability(student, "fit") == "tree":  # as large as its data make it
        return 0
    return sum(parameter.numel() for parameter in student.build(spec).parameters() if parameter.requires_grad)


def as_written(student: AnyStudent | AnyFeatures) -> dict[str, Any]:
    """A student as a run file has it: its type, and what differs from the defaults."""
    kinds: dict[str, type] = {**STUDENTS, **FEATURES}
    (kind,) = [name for name, cls in kinds.items() if type(student) is cls] or [type(student).__name__]
    written: dict[str, Any] = {"type": kind}
    for field in dataclasses.fields(student):
        value, default = getattr(student, field.name), field.default
        if value == default:
            continue
        if dataclasses.is_dataclass(value):
            written[field.name] = as_written(value)  # type: ignore[arg-type]
        else:
            written[field.name] = list(value) if isinstance(value, tuple) else value
    return written
