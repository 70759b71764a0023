"""Verdict of an evaluation in one sentence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from rldistill.evaluation.results import Evaluation, terminal_rows, verdict
from rldistill.reporting.search_page import SearchResult, search_verdict


def answer(decision: str, needed: int | None, **changes: Any) -> dict[str, Any]:
    fields = {"decision": decision, "margin": 0.05, "estimate": 1.0, "lower": None, "upper": None, "p": None}
    return fields | {"risk": 0.05, "episodes": 100, "min_episodes": 59, "episodes_needed": needed} | changes


def test_verdict_of_a_smaller_student(evaluation: dict[str, Any]) -> None:
    assert verdict(Evaluation.parse(evaluation, Path("evaluation.json"))) == (
        "The student small-mlp reaches 90.0% of its teacher's lead over random play (normalized score 0.900, "
        "95% interval 0.800 to 1.000) from 5,000 environment steps, and has 4.0 times fewer trained parameters "
        "than its teacher."
    )


@pytest.mark.parametrize(
    ("decision", "more", "begins", "ends"),
    [
        ("yes", 0, "The student small-mlp keeps 95% of its teacher's lead over random play: it reaches 90.0%", ""),
        ("no", 0, "The student small-mlp does not keep 95% of its teacher's lead over random play: it reaches", ""),
        (
            "undecided",
            1_234,
            "It is undecided whether the student small-mlp keeps 95% of its",
            "; run 1,234 more episodes",
        ),
        (
            "undecided",
            None,
            "It is undecided whether the student small-mlp keeps 95% of its",
            "; more episodes would not decide it",
        ),
    ],
)
def test_verdict_says_whether_the_teacher_was_kept(
    evaluation: dict[str, Any], decision: str, more: int | None, begins: str, ends: str
) -> None:
    evaluation["policies"]["small-mlp"]["non_inferiority"] = answer(decision, more)
    text = verdict(Evaluation.parse(evaluation, Path("evaluation.json")))
    assert text.startswith(begins)
    assert text.endswith(f", and has 4.0 times fewer trained parameters than its teacher{ends}.")


def test_verdict_tells_the_episodes_to_a_no_where_that_is_more_likely(evaluation: dict[str, Any]) -> None:
    test = answer("undecided", 2, estimate=-1.0, episodes=2)
    evaluation["policies"]["small-mlp"]["non_inferiority"] = test
    text = verdict(Evaluation.parse(evaluation, Path("evaluation.json")))
    assert text.endswith("; for a no, which is more likely, run 2 more episodes.")
    assert "a yes takes" not in text
    evaluation["policies"]["small-mlp"]["non_inferiority"] = test | {"estimate": 1.0}
    assert "; a yes takes at least 59 episodes; run 2" in verdict(Evaluation.parse(evaluation, Path("evaluation.json")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parameters": 1_001}, "but is larger than its teacher: 1,001 parameters against 1,000"),
        ({"parameters": 1_000}, "at its teacher's size"),
        ({"parameters": 0}, "from 5,000 environment steps."),
        ({"parameters": 0, "env_steps": 0}, "0.800 to 1.000)."),
        ({"normalized": {"value": 0.05, "ci95": [-0.05, 0.15]}}, "Nothing was learned: the best student, small-mlp"),
        ({"normalized": {"value": 0.9, "ci95": None}}, "not clearly better than random"),
    ],
)
def test_verdicts_are_honest(evaluation: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    evaluation["policies"]["small-mlp"] |= changes
    assert said in verdict(Evaluation.parse(evaluation, Path("evaluation.json")))


def test_verdicts_without_a_comparison(evaluation: dict[str, Any]) -> None:
    bad = copy.deepcopy(evaluation)
    for policy in bad["policies"].values():
        policy["normalized"] = None
    assert "no better than random play" in verdict(Evaluation.parse(bad, Path("evaluation.json")))
    del evaluation["policies"]["wide"], evaluation["policies"]["small-mlp"]
    assert verdict(Evaluation.parse(evaluation, Path("evaluation.json"))) == "No student was evaluated."


def test_verdict_names_the_baseline(evaluation: dict[str, Any]) -> None:
    evaluation["baseline"] = "rules:act"
    student = evaluation["policies"]["small-mlp"]
    student["normalized"]["ci95"] = [-0.1, 0.9]
    text = verdict(Evaluation.parse(evaluation, Path("evaluation.json")))
    assert text.startswith(
        "Nothing was gained: the best student, small-mlp, is not clearly better than the baseline rul"
    )
    evaluation["policies"]["teacher"]["normalized"] = None
    text = verdict(Evaluation.parse(evaluation, Path("evaluation.json")))
    assert text.startswith("The teacher is no better than the baseline rules:act")
    found = SearchResult(
        env="E", margin=0.05, by="bytes", baseline="rules:act", env_steps=1, teacher={"bytes": 1}, winner=None,
        tried=[], front=[], seconds=1.0,
    )  # fmt: skip
    assert "over the baseline rules:act" in search_verdict(found)


def test_column_of_continuous_actions_names_its_unit(evaluation: dict[str, Any]) -> None:
    columns = {cell.column for row in terminal_rows(Evaluation.parse(evaluation, Path("x.json"))) for cell in row}
    assert "agreement" in columns
    assert "action RMSE" not in columns
    evaluation["policies"]["small-mlp"] |= {"agreement": None, "action_rmse": 0.934}
    rows = terminal_rows(Evaluation.parse(evaluation, Path("x.json")))
    assert "agreement" not in {cell.column for row in rows for cell in row}
    assert [cell.text for row in rows for cell in row if cell.column == "action RMSE"] == ["–", "0.934", "–", "–"]
