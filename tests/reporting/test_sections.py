"""Further tables and sections of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rldistill.evaluation.results import Evaluation, robustness_rows
from rldistill.evaluation.tables import TableCell
from rldistill.io.atomic import write_json
from rldistill.reporting import write_report
from rldistill.reporting.tables import efficiency_rows, fidelity_rows, statistics_rows

STATES = {"states": 1_200, "agreement": 0.9, "action_rmse": None, "kl": 0.0125, "value_rmse": None, "regret": 0.5}


@pytest.fixture
def whole(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation with all optional parts."""
    for name, entry in evaluation["policies"].items():
        entry |= {
            "median": {"value": 450.0, "ci95": [400.0, 480.0]},
            "iqm": {"value": entry["iqm"]["value"], "ci95": [410.0, 470.0]},
            "optimality_gap": {"value": 0.125, "ci95": [0.1, 0.2]},
            "probability_of_improvement": None if name == "teacher" else {"value": 0.25, "ci95": [0.0, 0.5]},
            "success_rate": None,
            "profile": {"share": [1.0, 0.5, 0.0], "low": [1.0, 0.25, 0.0], "high": [1.0, 0.75, 0.0]},
        }
    small = evaluation["policies"]["small-mlp"]
    small["non_inferiority"] = {"decision": "yes", "margin": 0.1, "estimate": 9.0, "lower": 2.0, "upper": 31.5} | {
        "p": 0.01,
        "risk": 0.05,
        "episodes": 100,
        "min_episodes": 29,
        "episodes_needed": 0,
    }
    small["fidelity"] = {
        "temperature": 1.0,
        "regret_unit": "nats",
        "disagreements": "disagreements/small-mlp",
        "teacher_states": None,
        "own_states": STATES | {"random_regret": 2.0},
    }
    rows = {
        who: {"mean": {"value": 100.0, "ci95": [90.0, 110.0]}, "normalized": None, "lost": 7.5}
        for who in ("teacher", "small-mlp", "wide")
    }
    return evaluation | {
        "profile_at": [20.0, 300.0, 500.0],
        "efficiency": {
            "small-mlp": {"curve": [[5_000, 0.9]], "to": {"50": 5_000, "95": None}},
            "small-mlp-scratch": {"curve": [[1_000, 0.1], [9_000, 0.5]], "to": {"50": 9_000, "95": None}},
        },
        "robustness": {"episodes": 4, "perturbations": {"wind": rows}, "left_out": {"<b>": "no & reason"}},
    }


def test_statistics_with_their_intervals(whole: dict[str, Any]) -> None:
    row = statistics_rows(Evaluation.parse(whole, Path("evaluation.json")))[1]
    assert row == [
        TableCell("policy", "small-mlp"),
        TableCell("keeps 90% of the lead", "yes", "2.00 to 31.50 above"),
        TableCell("median", "450.00", "400.00 to 480.00"),
        TableCell("IQM", "450.00", "410.00 to 470.00"),
        TableCell("optimality gap", "0.125", "0.100 to 0.200"),
        TableCell("P(improvement)", "25%", "0% to 50%"),
    ]
    whole["policies"]["wide"]["success_rate"] = 0.5
    assert [row[-1].text for row in statistics_rows(Evaluation.parse(whole, Path("evaluation.json")))] == [
        "–",
        "–",
        "50%",
        "–",
    ]


def test_undefined_metrics_have_no_column(whole: dict[str, Any]) -> None:
    (row,) = fidelity_rows(Evaluation.parse(whole, Path("evaluation.json")))
    assert [(cell.column, cell.text) for cell in row] == [
        ("student", "small-mlp"),
        ("states", "1,200"),
        ("agreement", "90.0%"),
        ("KL", "0.0125"),
        ("regret", "0.5"),
    ]
    assert (row[0].note, row[-1].note) == ("its own states", "random 2")


def test_robustness_and_efficiency_by_hand(whole: dict[str, Any]) -> None:
    assert robustness_rows(Evaluation.parse(whole, Path("evaluation.json"))) == [
        [
            TableCell("perturbation", "wind"),
            *(TableCell(who, "100.00", "lost 7.50") for who in ("teacher", "small-mlp", "wide")),
        ]
    ]
    assert [
        [cell.text for cell in row] for row in efficiency_rows(Evaluation.parse(whole, Path("evaluation.json")))
    ] == [
        ["small-mlp", "5,000", "never"],
        ["small-mlp-scratch", "9,000", "never"],
    ]


def test_all_of_it_is_in_the_report(tmp_path: Path, whole: dict[str, Any]) -> None:
    write_json(tmp_path / "evaluation.json", whole)
    text = write_report(tmp_path).read_text()
    for title in ("Performance profiles", "Normalized score against environment steps", "Fidelity", "Robustness"):
        assert f">{title}<" in text
    assert text.count('class="band') == 4
    assert "Not measured: &lt;b&gt;, because no &amp; reason." in text
    assert "The student small-mlp keeps 90% of its teacher&#39;s lead over random play" in text


def test_a_search_beside_the_run_is_shown(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    write_json(tmp_path / "evaluation.json", evaluation)
    score = {"value": 0.97, "ci95": [0.9, 1.0]}
    rung = {"epochs": 1, "episodes": 4, "normalized": score, "failed": None}
    test = {"seeds": [0, 1, 2], "folder": "x", "episodes": 4, "normalized": score, "failed": None, "test": None}
    trial = {"name": "tiny", "student": {"type": "linear"}, "size": {"parameters": 10}, "rungs": [rung], "test": test}
    found = {"env": "CartPole-v1", "margin": 0.05, "by": "parameters", "env_steps": 9, "teacher": {"parameters": 1_000}}
    found |= {"winner": "tiny", "tried": [trial], "front": ["tiny"], "seconds": 1.0}
    (tmp_path / "search").mkdir()
    write_json(tmp_path / "search" / "search.json", found)
    text = write_report(tmp_path).read_text()
    assert "The smallest student that keeps 95%" in text
    assert "tiny: 10 parameters, a 100th of the teacher&#39;s" in text
    assert "<title>tiny: 10 parameters, 0.970</title>" in text
