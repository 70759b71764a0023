"""Evaluation in worlds that were never sampled in the collection."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rldistill import EnvConfig, EvaluateConfig, NetworkPolicy, RobustnessConfig, evaluate
from rldistill.core.errors import ConfigError
from rldistill.core.worlds import Choice
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.worlds import evaluation_env, world_rows
from rldistill.reporting import write_report
from rldistill.students import Mlp

from ..conftest import Reports

WORLDS = EnvConfig("CartPole-v1", worlds={"length": (0.25, 0.75), "masspole": (0.1, 0.2)})


def test_results_are_those_of_the_named_worlds(teacher: NetworkPolicy, tmp_path: Path) -> None:
    student = Mlp((4,)).build(teacher.spec).eval()
    config = EvaluateConfig(episodes=6, videos=False, worlds={"long": {"length": Choice((0.9,))}})
    result = evaluate(WORLDS, {"teacher": teacher, "mlp": student}, config, tmp_path, progress=False)
    # Parameters that are not named are drawn as in the collection.
    long = dataclasses.replace(WORLDS, worlds={"length": Choice((0.9,)), "masspole": (0.1, 0.2)})
    means = {
        name: float(np.mean(play(long, policy, 6, PlayConfig()).returns))
        for name, policy in {"teacher": teacher, "mlp": student, "random": None}.items()
    }
    found = result.worlds["long"]
    assert {name: own.mean.value for name, own in found.items()} == means
    score = (means["mlp"] - means["random"]) / (means["teacher"] - means["random"])
    assert found["mlp"].normalized is not None
    assert found["mlp"].normalized.value == pytest.approx(score)
    (row,) = world_rows(result.worlds)
    assert [cell.column for cell in row] == ["worlds", "teacher", "mlp", "random"]
    assert row[2].note.startswith(f"normalized {score:.3f} (")
    assert Evaluation.read(tmp_path / "evaluation.json").worlds == result.worlds
    assert "Other worlds" in write_report(tmp_path).read_text(encoding="utf-8")
    assert "### Other worlds" in (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_progress_counts_the_episodes_in_all_worlds(teacher: NetworkPolicy, tmp_path: Path) -> None:
    kinds = {name: {"length": Choice((length,))} for name, length in (("long", 0.9), ("short", 0.2))}
    reports: list[tuple[int, int]] = []
    receiver = Reports(lambda *report: reports.append(report))
    evaluate(WORLDS, {"teacher": teacher}, EvaluateConfig(3, videos=False, worlds=kinds), tmp_path, progress=receiver)
    done, totals = zip(*reports, strict=True)
    assert list(done) == sorted(done)
    assert reports[-1] == (18, 18)  # 3 episodes of teacher and random play, in sampled, long and short worlds
    assert set(totals) == {6, 18}


def test_unknown_parameters_are_refused_under_their_key() -> None:
    config = EvaluateConfig(worlds={"short": {"lenght": (0.1, 0.2)}})
    with pytest.raises(ConfigError, match=r"^evaluate\.worlds\.short: .* Did you mean 'length'\?"):
        evaluation_env(WORLDS, config)


def test_argument_that_worlds_replace_is_refused() -> None:
    config = EvaluateConfig(env_kwargs={"length": 2.0})
    with pytest.raises(ConfigError, match=r"^evaluate\.env_kwargs: length is one of env\.worlds, too\. Use"):
        evaluation_env(WORLDS, config)


@pytest.mark.parametrize("name", ["", " wide", "two\nlines", "\x1b[31m", "x" * 61])
def test_worlds_and_perturbations_have_names_that_tables_can_show(name: str) -> None:
    with pytest.raises(ConfigError, match=r"worlds: found the name .*expected 1 to 60 printable characters"):
        EvaluateConfig(worlds={name: {}})
    with pytest.raises(ConfigError, match=r"env_kwargs: found the name .*expected 1 to 60 printable characters"):
        RobustnessConfig(env_kwargs={name: {}})
    assert EvaluateConfig(worlds={"short and strong": {}}).worlds
