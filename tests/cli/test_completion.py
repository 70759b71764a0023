"""Completion of keys and values of a run file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rldistill.cli.completion import complete_setting


@pytest.mark.parametrize(
    ("incomplete", "choices"),
    [
        ("distill.sch", ["distill.schedule="]),
        ("distill.schedule=", ["distill.schedule=constant", "distill.schedule=cosine"]),
        ("verify=", ["verify=false", "verify=true"]),
        ("collect.mixture=e", ["collect.mixture=episode"]),
        ("recipe=of", ["recipe=offline"]),
        ("recipe.steps", ["recipe.steps_per_round="]),
        ("teacher.train.total", ["teacher.train.total_steps="]),
        ("evaluate.robustness.sti", ["evaluate.robustness.sticky="]),
        ("distill.epochs=", []),
        ("nothing", []),
        ("nothing=", []),
    ],
)
def test_keys_and_values_are_completed(incomplete: str, choices: list[str]) -> None:
    assert complete_setting(incomplete) == choices


def test_keys_without_a_beginning_are_all_keys() -> None:
    keys = complete_setting("")
    assert {"env.id=", "teacher=", "evaluate.baseline=", "seeds="} <= set(keys)
    assert len(keys) == len(set(keys))


@pytest.mark.slow
def test_shell_receives_the_choices() -> None:
    environment = {
        "_RLDISTILL_COMPLETE": "complete_bash",
        "COMP_WORDS": "rldistill run x distill.sch",
        "COMP_CWORD": "3",
    }
    command = [sys.executable, "-m", "rldistill"]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["distill.schedule="]
