"""Students by budget, against sizes worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rldistill.core.errors import ConfigError
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import PolicySpec
from rldistill.students import Impala, Mlp
from rldistill.students.budget import costs, fit_budget

VECTOR = PolicySpec((8,), "float32", CategoricalHead((4,)))
FRAMES = PolicySpec((4, 84, 84), "uint8", CategoricalHead((6,)))


def test_costs_by_hand() -> None:
    cost = costs(Mlp((10,)), VECTOR)
    assert cost == {"parameters": 8 * 10 + 10 + 10 * 4 + 4, "bytes": 4 * 134, "macs": 8 * 10 + 10 * 4}
    # one stage on 2x8x6: 3x3 from 2 to 3 channels on 8x6, then four 3x3 from 3 to 3 on 4x3; 36 to 5, 5 to 2
    tiny = costs(Impala((3,), (5,)), PolicySpec((2, 8, 6), "uint8", CategoricalHead((2,))))
    convolutions = (9 * 2 * 3 + 3) + 4 * (9 * 3 * 3 + 3)
    assert tiny["parameters"] == convolutions + 36 * 5 + 5 + 5 * 2 + 2
    assert tiny["macs"] == 48 * 9 * 2 * 3 + 4 * 12 * 9 * 3 * 3 + 36 * 5 + 5 * 2


@pytest.mark.parametrize("family", ["mlp", "cnn", "impala"])
@pytest.mark.parametrize("limit", [{"parameters": 62_000}, {"bytes": 100_000}, {"macs": 500_000}])
def test_a_budget_is_kept_and_used(family: Any, limit: dict[str, int]) -> None:
    spec = VECTOR if family == "mlp" else FRAMES
    ((name, most),) = limit.items()
    assert 0.7 * most < costs(fit_budget(spec, family, **limit), spec)[name] <= most


def test_every_limit_counts() -> None:
    cost = costs(fit_budget(FRAMES, "cnn", parameters=62_000, macs=200_000), FRAMES)
    assert cost["macs"] <= 200_000
    assert cost["parameters"] <= 62_000


def test_a_budget_below_the_smallest_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="the smallest has parameters"):
        fit_budget(FRAMES, "cnn", parameters=5)
    with pytest.raises(ConfigError, match="give a limit"):
        fit_budget(FRAMES)
    with pytest.raises(ConfigError, match="Did you mean 'cnn'"):
        fit_budget(FRAMES, "cmn", parameters=5)  # type: ignore[arg-type]
