"""Scores of students of several tasks: the mean with its interval, the table, the verdict, the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rldistill.core.errors import CorruptArtifactError
from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.tasks import TasksEvaluation, mean_score
from rldistill.io.atomic import write_json
from rldistill.reporting import write_tasks_report

from ..reporting.conftest import entry


def task(
    name: str, students: dict[str, Any], teacher: Any, random: Any, kept: str | None = None, **changes: Any
) -> Evaluation:
    decision = kept and {
        "decision": kept, "margin": 0.05, "estimate": 0.0, "lower": None, "upper": None, "p": None, "risk": 0.05,
        "episodes": 2, "min_episodes": 59, "episodes_needed": None,
    }  # fmt: skip
    lead = np.mean(teacher) - np.mean(random)
    policies = {"teacher": entry("teacher", [teacher], 1.0)}
    for student, returns in students.items():
        score = None if lead <= 0 else (np.mean(returns) - np.mean(random)) / lead
        policies[student] = entry("student", returns, score, non_inferiority=decision)
    policies["random"] = entry("random", [random], 0.0)
    document = {
        "env": f"{name}-v1", "env_kwargs": {}, "episodes": len(teacher), "seeds": [0], "versions": {},
        "profile_at": [0.0], "warnings": {}, "efficiency": {}, "policies": policies, **changes,
    }  # fmt: skip
    return Evaluation.parse(document, Path("evaluation.json"))


def test_mean_score_is_the_mean_of_normalized_scores_of_any_unit() -> None:
    cart = task("Cart", {"mlp": [[250.0, 250], [150, 250]]}, [500.0, 500], [0.0, 0])  # 0.45
    car = task("Car", {"mlp": [[-110.0, -130], [-120, -120]]}, [-100.0, -100], [-200.0, -200])  # 0.8
    found = mean_score([cart, car], "mlp")
    assert found is not None
    assert found.value == pytest.approx(0.625)


def test_interval_of_equal_tasks_is_that_of_one() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(90, 10, (3, 30)).tolist(), rng.normal(100, 5, 30).tolist()
    one = task("A", {"mlp": student}, teacher, rng.normal(0, 5, 30).tolist())
    alone, twice = mean_score([one], "mlp"), mean_score([one, one], "mlp")
    assert alone is not None
    assert twice is not None
    assert twice.value == pytest.approx(alone.value)
    assert twice.ci95 == pytest.approx(alone.ci95)


def test_interval_covers_the_mean_over_independent_tasks() -> None:
    """Standard errors of independent tasks add up: that of the mean of four tasks is half of one task's."""
    rng = np.random.default_rng(0)
    tasks = [task(str(n), {"mlp": rng.normal(90, 10, (1, 400)).tolist()}, [100.0] * 400, [0.0] * 400) for n in range(4)]
    found = mean_score(tasks, "mlp")
    assert found is not None
    assert found.ci95 is not None
    expected = 2 * 1.96 * 0.1 / np.sqrt(400) / 2
    assert found.ci95[1] - found.ci95[0] == pytest.approx(expected, rel=0.15)


def test_training_seeds_that_trade_tasks_do_not_count_as_spread() -> None:
    """A seed that is better in one task and worse in the other has the same mean score as the others."""
    high, low = [[100.0] * 20, [80.0] * 20], [[80.0] * 20, [100.0] * 20]
    trading = [task("A", {"mlp": high}, [100.0] * 20, [0.0] * 20), task("B", {"mlp": low}, [100.0] * 20, [0.0] * 20)]
    found = mean_score(trading, "mlp")
    assert found is not None
    assert found.value == pytest.approx(0.9)
    assert found.ci95 == pytest.approx((0.9, 0.9))


def test_more_episodes_in_one_task_are_left_out() -> None:
    short = task("A", {"mlp": [[50.0, 50]]}, [100.0, 100], [0.0, 0])
    long = task("B", {"mlp": [[100.0, 100, 0]]}, [100.0, 100, 100], [0.0, 0, 0])
    found = mean_score([short, long], "mlp")
    assert found is not None
    assert found.value == pytest.approx(0.75)


@pytest.fixture
def tasks() -> dict[str, Evaluation]:
    students = {"small": [[450.0, 400]], "wide": [[480.0, 480]]}
    return {
        "cart": task("Cart", students, [500.0, 480], [20.0, 22], "yes"),
        "car": task("Car", students, [500.0, 480], [20.0, 22], "no"),
    }


def test_table_and_verdict(tasks: dict[str, Evaluation]) -> None:
    result = TasksEvaluation.of(tasks, {"small": 250, "wide": 4_000}, 0.05)
    (small, wide) = result.rows
    assert [cell.column for cell in small] == [
        "student", "mean score", "cart", "car", "kept", "parameters", "env steps",
    ]  # fmt: skip
    assert [cell.text for cell in wide][-3:] == ["1 of 2", "4,000", "10,000"]
    start = (
        "The student wide, with 4,000 parameters, keeps 95% of its teacher's lead in 1 of 2 tasks; not in car. Its mean"
    )
    assert result.verdict.startswith(start)
    assert TasksEvaluation.of(tasks, {}, 0.05).verdict.startswith("No student")


def test_teacher_no_better_than_random_play_leaves_no_mean(tasks: dict[str, Evaluation]) -> None:
    tasks["car"] = task("Car", {"small": [[1.0, 1]]}, [1.0, 1], [2.0, 2])
    result = TasksEvaluation.of(tasks, {"small": 250}, 0.05)
    assert result.students["small"].mean is None
    assert "a teacher is not better than random play" in result.verdict
    assert result.rows[0][1].text == "–"


def test_report_has_a_table_of_each_task(tasks: dict[str, Evaluation], tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", TasksEvaluation.of(tasks, {"small": 250}, 0.05).to_dict())
    for name, own in tasks.items():
        (tmp_path / "tasks" / name).mkdir(parents=True)
        write_json(tmp_path / "tasks" / name / "evaluation.json", own.to_dict())
    page = write_tasks_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("<table>") == 1 + 2 * 2
    assert page.count("<td>yes</td>") == page.count("<td>no</td>") == 2  # two students each
    assert 'href="tasks/cart/report.html"' in page
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(CorruptArtifactError, match="Run `rldistill evaluate` again"):
        write_tasks_report(tmp_path)
