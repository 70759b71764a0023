"""Next step after an evaluation, and the column of the test."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from rldistill.evaluation.non_inferiority import NonInferiorityResult
from rldistill.evaluation.results import Evaluation, next_step
from rldistill.io.atomic import write_json
from rldistill.io.run_file import command_arguments, override
from rldistill.reporting import write_report
from rldistill.reporting.tables import bounds_text


def result(decision: str, needed: int | None, **changes: Any) -> dict[str, Any]:
    fields = {"decision": decision, "margin": 0.05, "estimate": 1.0, "lower": -1.2, "upper": 3.4, "p": 0.3}
    return fields | {"risk": 0.05, "episodes": 2, "min_episodes": 59, "episodes_needed": needed} | changes


@pytest.mark.parametrize(
    ("decision", "needed", "step"),
    [
        ("undecided", 74, ("To decide it takes about 74 more episodes of each policy", 76)),
        ("undecided", 1, ("To decide it takes about 1 more episode of each policy", 3)),
        ("undecided", 1_500, ("To decide it takes about 1,500 more episodes of each policy", 1_502)),
        ("undecided", None, ("To see why it falls short", None)),
        ("yes", 0, None),
        ("no", 0, ("To see why it falls short", None)),
    ],
)
def test_next_step_is_a_number_of_episodes_and_a_command(
    evaluation: dict[str, Any], decision: str, needed: int | None, step: tuple[str, int | None] | None
) -> None:
    evaluation["policies"]["small-mlp"]["non_inferiority"] = result(decision, needed)
    found = next_step(Evaluation.parse(evaluation, Path("evaluation.json")), Path("runs/my run"))
    command = "rldistill why 'runs/my run'"
    if step and step[1]:
        command = "rldistill evaluate 'runs/my run/config.yaml' --sequential --resume evaluate.max_episodes="
        command += str(step[1])
    assert found == (step and (step[0], command))


@pytest.mark.parametrize(
    ("out", "more"),
    [
        ("runs/a #1", []),
        ("FOLDER/runs/a #1", []),
        ("runs/a", ["out='runs/a #1'"]),  # moved
        ("s3://bucket/a", ["out='runs/a #1'"]),
        (7, []),
    ],
)
def test_command_is_for_the_folder_that_is_there(
    out: Any, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/a #1")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps({"out": out}).replace("FOLDER", str(tmp_path)))
    assert shlex.split(command_arguments(run)) == ["runs/a #1/config.yaml", *more]


@pytest.mark.parametrize(
    ("text", "written"), [("runs/a", "out=runs/a"), ("7", "out='7'"), ("a #1", "out='a #1'"), ("ü", "out=ü")]
)
def test_override_has_the_quotes_of_yaml(text: str, written: str) -> None:
    assert override("out", text) == written


def test_report_names_the_next_step(evaluation: dict[str, Any], tmp_path: Path) -> None:
    evaluation["policies"]["small-mlp"]["non_inferiority"] = result("undecided", 74)
    write_json(tmp_path / "evaluation.json", evaluation)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    head, _, rest = text.partition('<section id="compared"')
    assert "evaluate.max_episodes=76</pre>" in head
    assert '<th scope="col">keeps 95% of the lead</th>' in rest
    assert "1.20 short to 3.40 above" in rest
    assert "at least 59 episodes" in rest


@pytest.mark.parametrize(
    ("lower", "upper", "text"),
    [
        (2.0, 31.5, "2.00 to 31.50 above"),
        (-31.5, -2.0, "2.00 to 31.50 short"),
        (-1.2, 3.4, "1.20 short to 3.40 above"),
        (0.0, 3.4, "0.00 to 3.40 above"),
        (None, None, ""),
        (1.0, 1.0, ""),
    ],
)
def test_bounds_are_distances_from_the_required_return(lower: float | None, upper: float | None, text: str) -> None:
    fields = result("undecided", 1, lower=lower, upper=upper)
    assert bounds_text(NonInferiorityResult(**fields)) == text
