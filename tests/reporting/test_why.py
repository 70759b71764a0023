"""Reasons of a shortfall, each shown by a run that was made by hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.data.dataset import Dataset
from rldistill.io.atomic import write_json
from rldistill.io.metrics import Metrics
from rldistill.policies.network import NetworkPolicy
from rldistill.reporting.why import (
    MIN_ALIASED_SHARE,
    MIN_DISAGREEMENT,
    MIN_LOSS_DECREASE,
    MIN_LOSS_RATIO,
    MIN_SHIFT_RATIO,
    Cause,
    aliased_share,
    explain_shortfall,
)

Losses = Sequence[tuple[float | None, float]]
MakeRun = Callable[..., Path]
SIGNS = """
import gymnasium, numpy as np
class Signs(gymnasium.ObservationWrapper):
    def observation(self, obs):
        return np.sign(obs)
"""


@pytest.fixture
def make_run(evaluation: dict[str, Any], tmp_path: Path) -> MakeRun:
    """Return a function that writes a run: agreement in the teacher's and in its own states, losses, and settings."""

    def make(
        theirs: float | None, own: float, losses: Losses, settings: dict[str, Any] | None = None, rmse: bool = False
    ) -> Path:
        def states(value: float | None) -> dict[str, Any] | None:
            part = {"action_rmse": value} if rmse else {"agreement": value}
            return None if value is None else {"states": 100, **part}

        student = evaluation["policies"]["small-mlp"]
        student["fidelity"] = {"temperature": 1.0, "regret_unit": None, "disagreements": "disagreements/small-mlp"} | {
            "teacher_states": states(theirs),
            "own_states": states(own),
        }
        student["non_inferiority"] = {"decision": "no", "margin": 0.05, "estimate": -9.0, "lower": -12.0} | {
            "upper": -6.0,
            "p": 0.9,
            "risk": 0.05,
            "episodes": 100,
            "min_episodes": 59,
            "episodes_needed": 0,
        }
        write_json(tmp_path / "evaluation.json", evaluation)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings or {}))
        rows = [
            {"epoch": epoch, "step": epoch}
            | ({} if train is None else {"train_loss": train})
            | {"heldout_loss": heldout}
            for epoch, (train, heldout) in enumerate(losses, 1)
        ]
        (tmp_path / "students/small-mlp/seed-0").mkdir(parents=True)
        Metrics(tmp_path / "students/small-mlp/seed-0").write(rows)
        return tmp_path

    return make


FLAT = [(0.1, 0.1)] * 20
CASES: dict[str, tuple[float, float, Losses, dict[str, Any], str, str]] = {
    "covariate shift": (0.98, 0.8, FLAT, {}, "98.0% of the teacher's states, but agrees", "rounds: 4,"),
    "few data": (0.8, 0.78, [(0.1, 0.4)] * 20, {"collect": {"steps": 500}}, "0.4 on held-out data, but 0.1", "=2000"),
    "capacity": (0.7, 0.69, FLAT, {}, "0.1 (on the training data, too: 0.1), and it agrees", "rldistill search"),
    "early stop": (0.99, 0.99, FLAT[:8], {"distill": {"epochs": 40}}, "after 8 of 40 epochs", "distill.patience=0"),
    "too few epochs": (
        0.99, 0.99, [(0.1, 1 / epoch) for epoch in range(1, 11)], {"distill": {"epochs": 10}},
        # 3 of 4 epochs are 8: 1 - (1 / 10) / (1 / 8)
        "fell by 20% in the last quarter of the 10 epochs", "distill.epochs=20",
    ),
    "unknown": (0.99, 0.99, FLAT, {}, "none of the usual causes", "seeds=[0,1,2,3,4]"),
}  # fmt: skip


@pytest.mark.parametrize("cause", CASES)
def test_each_cause_is_found_alone(make_run: MakeRun, cause: str) -> None:
    theirs, own, losses, settings, fact, remedy = CASES[cause]
    found = explain_shortfall(make_run(theirs, own, losses, settings))
    assert [finding.cause for finding in found.findings] == [cause]
    assert fact in found.findings[0].text
    assert remedy in found.findings[0].command
    assert found.summary == "The student small-mlp reaches 90.0% of its teacher's lead over random play; wanted: 95%."


def test_high_score_that_is_undecided_is_not_called_a_shortfall(make_run: MakeRun, evaluation: dict[str, Any]) -> None:
    evaluation["policies"]["small-mlp"]["normalized"] = {"value": 0.98, "ci95": [0.87, 1.0]}
    found = explain_shortfall(make_run(0.99, 0.99, FLAT))
    expected = (
        "reaches 98.0% of its teacher's lead over random play, but 95% are not shown: the 95% interval is 87.0% to"
    )
    assert expected in found.summary


def test_causes_are_in_the_order_of_their_remedies(make_run: MakeRun) -> None:
    found = explain_shortfall(make_run(0.85, 0.5, [(0.1, 0.4)] * 6))
    assert [finding.cause for finding in found.findings] == ["early stop", "few data", "covariate shift"]
    assert str(found).splitlines()[-1] == f"Next: {found.findings[0].command}"


def test_rounds_are_added_to_those_of_dagger(make_run: MakeRun) -> None:
    settings = {"recipe": {"name": "dagger", "rounds": 3, "steps_per_round": 100}}
    found = explain_shortfall(make_run(0.98, 0.8, FLAT, settings))
    assert "recipe.rounds=6" in found.findings[0].command


def test_errors_of_continuous_actions_are_compared(make_run: MakeRun) -> None:
    found = explain_shortfall(make_run(0.05, 0.3, FLAT, rmse=True))
    assert [finding.cause for finding in found.findings] == ["covariate shift"]
    assert "differs from its teacher by 0.05 in the teacher's states, but differs from its" in found.findings[0].text


def test_students_without_epochs_or_data_have_causes_too(make_run: MakeRun) -> None:
    found = explain_shortfall(make_run(0.7, 0.69, [(None, 0.3)]))  # a tree
    assert [finding.cause for finding in found.findings] == ["capacity"]
    assert "is 0.3, and it" in found.findings[0].text


def test_student_from_reward_has_no_teacher_states(make_run: MakeRun) -> None:
    assert [finding.cause for finding in explain_shortfall(make_run(None, 0.5, [])).findings] == ["unknown"]


def test_share_of_contradictory_labels_is_counted(dataset: Dataset) -> None:
    # Observations 0 0 0 1 1 2 with the actions 0 0 1 1 1 0: only the third is unlike the best choice.
    rows, actions = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    columns = {name: column[:6] for name, column in dataset.columns.items()}
    columns["teacher"] = np.eye(2, dtype=np.float32)[actions]
    small = dataclasses.replace(
        dataset, columns=columns, row=rows, next_row=rows, obs=np.arange(12, dtype=np.float32).reshape(3, 4)
    )
    assert aliased_share(small) == pytest.approx(1 / 6)


def test_equal_observations_with_different_labels_are_found(
    make_run: MakeRun, teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_signs.py").write_text(SIGNS)
    monkeypatch.syspath_prepend(tmp_path)
    env = EnvConfig("CartPole-v1", views=Views(student=(Wrapper("own_signs:Signs"),)))
    run = make_run(0.7, 0.69, FLAT)
    collect(env, teacher, CollectConfig(steps=600, epsilon=0.3, block_steps=64), run / "dataset")
    found = explain_shortfall(run).findings
    assert [finding.cause for finding in found] == ["aliasing", "capacity"]
    assert "students={gru: {type: gru}}" in found[0].command


def test_student_that_keeps_the_lead_has_no_findings(evaluation: dict[str, Any], make_run: MakeRun) -> None:
    run = make_run(0.7, 0.69, FLAT)
    evaluation["policies"]["small-mlp"]["non_inferiority"]["decision"] = "yes"
    write_json(run / "evaluation.json", evaluation)
    found = explain_shortfall(run)
    assert str(found) == "The student small-mlp reaches 90.0% of its teacher's lead over random play, and keeps 95%."


def test_page_has_every_cause() -> None:
    page = (Path(__file__).parents[2] / "docs/shortfall.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| ([a-z ]+) \|", page, re.MULTILINE)[1:] == [*get_args(Cause)]
    for share in (MIN_ALIASED_SHARE, MIN_LOSS_DECREASE, MIN_DISAGREEMENT):
        assert f"{share:.0%}" in page
    for ratio in (MIN_LOSS_RATIO, MIN_SHIFT_RATIO):
        assert f"{ratio} times" in page


def test_command_line(make_run: MakeRun) -> None:
    run = make_run(0.98, 0.8, FLAT)
    result = CliRunner().invoke(app, ["why", str(run)])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("Next: rldistill run ")
    assert '"cause": "covariate shift"' in CliRunner().invoke(app, ["why", str(run), "--json"]).stdout
    with pytest.raises(ConfigError, match=r"has no 'smal-mlp'\. Did you mean 'small-mlp'\?"):
        explain_shortfall(run, "smal-mlp")
    assert "wide" in explain_shortfall(run, "wide").summary
    assert "there is no such folder" in CliRunner().invoke(app, ["why", str(run / "none")]).stderr
    (run / "none").mkdir()
    assert "the run has no evaluation yet" in CliRunner().invoke(app, ["why", str(run / "none")]).stderr
