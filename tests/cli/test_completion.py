"""Completion of keys and values of a run file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rldistill.cli.completion import (
    complete_file,
    complete_run,
    complete_setting,
    complete_source,
    complete_started_run,
    complete_student,
    complete_student_type,
    complete_teacher,
    join_words,
)

from .. import commands


@pytest.mark.parametrize(
    ("incomplete", "choices"),
    [
        ("distill.sch", ["distill.schedule=constant", "distill.schedule=cosine"]),
        ("distill.epo", ["distill.epochs=", "distill.epochs=20"]),
        ("distill.schedule=", ["distill.schedule=constant", "distill.schedule=cosine"]),
        ("verify=", ["verify=false", "verify=true"]),
        ("collect.mixture=e", ["collect.mixture=episode"]),
        ("recipe=of", ["recipe=offline"]),
        ("recipe.steps", ["recipe.steps_per_round="]),
        ("teacher.train.total", ["teacher.train.total_steps=", "teacher.train.total_steps=100000"]),
        ("evaluate.robustness.sti", ["evaluate.robustness.sticky=", "evaluate.robustness.sticky=0.5"]),
        ("recipe.name=of", ["recipe.name=offline"]),
        ("students.own.type=tr", ["students.own.type=tree"]),
        ("students.own=ml", ["students.own=mlp"]),
        ("students.own.max_d", ["students.own.max_depth=", "students.own.max_depth=8"]),
        ("students.own.features=four", ["students.own.features=fourier"]),
        ("distill.losses=[fo", ["distill.losses=[forward_kl]"]),
        ("teacher=zoo:cart", ["teacher=zoo:cartpole-ppo"]),
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


def test_files_and_runs_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pong.yaml", "examples/pong.yml", "examples/deep/er/pong.yaml", "runs/pong/evaluation.json", "x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert complete_file("") == ["examples/pong.yml", "pong.yaml"]
    assert complete_file("ex") == complete_file("examples/p") == ["examples/pong.yml"]
    assert complete_file(f"{tmp_path}/po") == [f"{tmp_path}/pong.yaml"]
    assert complete_file("none/x") == []
    assert complete_run("") == complete_run("runs/p") == ["runs/pong"]
    (tmp_path / "runs/new").mkdir()
    (tmp_path / "runs/new/provenance.json").touch()
    assert complete_started_run("ru") == ["runs/new"]
    assert complete_teacher("zoo:po") == ["zoo:pong-dqn"]
    (tmp_path / "runs/pong/students/tree").mkdir(parents=True)
    (tmp_path / "zoo").mkdir()
    assert complete_source("") == ["runs/new", *complete_teacher("")]
    for parameter in ("run", "path"):
        context = SimpleNamespace(params={parameter: "runs/pong"}, args=[])
        assert complete_student(context, "t") == ["tree"]  # type: ignore[arg-type]


def test_types_of_students_are_completed() -> None:
    assert complete_student_type("tr") == ["tree"]
    assert {"linear", "mlp", "gru"} <= {*complete_student_type("")}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["rldistill", "run", ""], ["rldistill", "run", ""]),
        (["run", "x", "distill.schedule", "=", "co"], ["run", "x", "distill.schedule=co"]),
        (["run", "x", "distill.schedule", "="], ["run", "x", "distill.schedule="]),
        (["run", "x", "distill.schedule", "=", ""], ["run", "x", "distill.schedule="]),
        (["run", "x", "teacher", "=", "zoo", ":", "c", "a", "=", "b"], ["run", "x", "teacher=zoo:c", "a=b"]),
        (["run", "x", "teacher", "=:", "c"], ["run", "x", "teacher=:c"]),
    ],
)
def test_parts_of_words_are_joined(parts: list[str], words: list[str]) -> None:
    assert join_words(parts) == words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "words", "number", "answer"),
    [
        ("bash", "rldistill\nrun\nx\ndistill.schedule\n=\nco", 5, "constant\ncosine"),
        ("bash", "rldistill\nrun\nx\nteacher\n=\nzoo\n:\ncart", 7, "cartpole-ppo"),
        ("bash", "rldistill\nwhy\nruns/x\n--student\n", 4, "tree"),
        ("zsh", "rldistill run x distill.schedule=co", 3, '"distill.schedule=constant"'),
        ("fish", "rldistill run x distill.schedule=co", 3, "distill.schedule=constant\ndistill.schedule=cosine"),
    ],
)
def test_shell_receives_the_choices(shell: str, words: str, number: int, answer: str, tmp_path: Path) -> None:
    (tmp_path / "runs/x/students/tree").mkdir(parents=True)
    environment = {
        "_RLDISTILL_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": words,
        "COMP_CWORD": str(number),
    }
    done = commands.run(folder=tmp_path, before=f"os.environ.update({environment!r})")
    assert done.stdout.strip() == answer if shell != "zsh" else answer in done.stdout
    assert "distill.epochs" not in done.stdout
