from __future__ import annotations

from rldistill.evaluation.efficiency import efficiency


def test_steps_to_each_share_of_the_teachers_lead() -> None:
    # Random -20, teacher 20: a return of 0 is 50%, 10 is 75%, 16 is 90%, 18 is 95%.
    found = efficiency({"slow": [(10, -20), (20, 0), (30, -5), (40, 17)], "once": [(5, 18)]}, 20.0, -20.0)
    assert found["slow"].curve == [(10, 0.0), (20, 0.5), (30, 0.375), (40, 0.925)]
    assert found["slow"].to == {"50": 20, "75": 40, "90": 40, "95": None}
    assert found["once"].to == {"50": 5, "75": 5, "90": 5, "95": 5}


def test_teacher_no_better_than_random_has_no_efficiency() -> None:
    assert efficiency({"a": [(1, 0.0)]}, -1.0, 0.0) == {}
