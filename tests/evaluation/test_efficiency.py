from __future__ import annotations

from pathlib import Path
from typing import Any

from rldistill.evaluation.evaluate import efficiency
from rldistill.evaluation.results import Evaluation

from ..reporting.conftest import entry


def policies(teacher: float, random: float, **students: dict[str, Any]) -> Any:
    ends = {"teacher": entry("teacher", [[teacher]], 1.0), "random": entry("random", [[random]], 0.0)}
    fields = {"env": "x", "env_kwargs": {}, "episodes": 1, "seeds": [], "versions": {}, "profile_at": [0.0]}
    lists = {"warnings": {}, "efficiency": {}, "policies": ends | students}
    return Evaluation.parse(fields | lists, Path("evaluation.json")).policies


def test_steps_to_each_share_of_the_teachers_lead() -> None:
    # Random -20, teacher 20: a return of 0 is 50%, 10 is 75%, 16 is 90%, 18 is 95%.
    slow, once = (entry("student", [[mean]], 0.9, env_steps=steps) for mean, steps in ((17.0, 40), (18.0, 5)))
    results = efficiency({"slow": [(10, -20), (20, 0), (30, -5)]}, policies(20.0, -20.0, slow=slow, once=once))
    assert list(results) == ["slow", "once"]
    assert results["slow"].curve == [(10, 0.0), (20, 0.5), (30, 0.375), (40, 0.925)]
    assert results["slow"].to == {"50": 20, "75": 40, "90": 40, "95": None}
    assert results["once"].to == {"50": 5, "75": 5, "90": 5, "95": 5}


def test_teacher_no_better_than_random_has_no_efficiency() -> None:
    assert efficiency({"teacher": [(1, 0.0)]}, policies(-1.0, 0.0)) == {}
