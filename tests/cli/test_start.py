"""First steps: the demo, examples that ship, and new run files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

import rldistill
from rldistill.cli.main import app
from rldistill.cli.start import TRAIN, complete_example, description, example_files


@pytest.fixture(autouse=True)
def _new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [*arguments], input=text)


def test_each_example_has_a_line() -> None:
    lines = call("examples").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*example_files()]
    assert all(len(line.split()) > 4 for line in lines)
    assert complete_example("pong-d") == ["pong-dagger"]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("pong", {"pong.yaml"}),
        ("grid", {"grid.yaml", "teachers/grid_mpc.py", "features/quarters.py"}),
        ("spread", {"spread.yaml", "spread_planner.py"}),
        ("features/pong-basic", {"features/pong-basic.yaml", "features/screen_bits.py"}),
    ],
)
def test_example_is_copied_with_its_code(name: str, files: set[str]) -> None:
    result = call("examples", name)
    copied = {str(path.relative_to("examples")) for path in Path("examples").rglob("*") if path.is_file()}
    assert (result.exit_code, copied) == (0, files), result.output
    text = Path(f"examples/{name}.yaml").read_text()
    assert text == example_files()[name].read_text().partition("\n")[2]  # without the schema of a clone
    assert description(text) in result.stdout
    assert result.stdout.endswith(f"Now: rldistill run examples/{name}.yaml\n")


def test_examples_share_the_code_that_they_name() -> None:
    for name in ("atari/breakout", "atari/qbert"):
        result = call("examples", name)
        assert (result.exit_code, "examples/atari/agents.py" in result.stdout) == (0, True), result.output
    again = call("examples", "atari/qbert")
    assert (again.exit_code, "examples/atari/qbert.yaml exists" in again.stderr) == (2, True)


def test_example_is_never_overwritten() -> None:
    Path("examples").mkdir()
    Path("examples/spread_planner.py").write_bytes("# für mich".encode("latin-1"))
    result = call("examples", "spread")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "examples/spread_planner.py exists" in result.stderr
    assert not Path("examples/spread.yaml").exists()
    assert call("examples", "pnog").stderr.startswith("error: examples: there is no 'pnog'. Did you mean 'pong'?")


@pytest.mark.parametrize("missing", [False, True])
def test_demo_is_the_pong_run(missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(rldistill, "run_all", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr("rldistill.exporters.formats.find_spec", lambda _: None if missing else "there")
    for options in (["demo"], ["demo", "--quick", "--quiet"]):
        assert call(*options).exit_code == 0
    (full, *first), (quick, *second) = calls
    assert (full.env.id, full.out, first) == ("ALE/Pong-v5", Path("runs/pong"), ["resume", False])
    assert full.export.formats == (("c",) if missing else ("onnx",))
    assert (quick.out, quick.export, second) == (Path("runs/pong-quick"), None, ["resume", True])


CASES = {
    "vector": ("CartPole-v1", "zoo:cartpole-ppo", "cartpole.yaml", "mlp"),
    "options": ("CartPole-v1", "zoo:cartpole-ppo", "own.yaml", "mlp"),
    "pictures": ("ALE/Pong-v5", "zoo:pong-dqn", "pong.yaml", "cnn"),
    "trained": ("CartPole-v1", TRAIN, "cartpole.yaml", "mlp"),
    "with settings": ("{id: CartPole-v1, kwargs: {max_episode_steps: 30}}", TRAIN, "cartpole.yaml", "mlp"),
}


@pytest.mark.parametrize("case", CASES)
def test_new_run_file_is_valid(case: str) -> None:
    env, teacher, file, student = CASES[case]
    named = [file] if case == "options" else []
    result = call("init", *named, "--env", env, "--teacher", teacher)
    assert (result.exit_code, result.stdout) == (0, f"{file}: run it with `rldistill run {file}`\n"), result.output
    run = rldistill.load_run(Path(file), environment={})
    assert run.students.keys() == {student}
    assert (getattr(run.teacher, "path", TRAIN), run.out) == (teacher, Path("runs") / Path(file).stem)
    assert run.env.kwargs == ({"max_episode_steps": 30} if case == "with settings" else {})
    assert Path(file).read_text().count("\n# ") >= 7
    again = call("init", "--env", env, "--teacher", teacher, file)
    assert (again.exit_code, again.stderr) == (2, f"error: init: {file} exists. Name another file, or remove it.\n")


def test_teacher_with_options_is_written_with_them(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import torch\n\ndef make():\n    return torch.nn.Linear(4, 2)\n")
    result = call("init", "--env", "CartPole-v1", "--teacher", "own:make,head=q_values")
    assert result.exit_code == 0, result.output
    assert "\nteacher: {path: 'own:make', head: q_values}\n" in Path("cartpole.yaml").read_text()


def test_missing_answers_are_asked_for() -> None:
    result = call("init", text="CartPole-v1\n\n")
    assert result.exit_code == 0, result.output
    assert "[zoo:cartpole-ppo]" in result.stdout
    assert "\nteacher: zoo:cartpole-ppo\n" in Path("cartpole.yaml").read_text()


def test_commands_of_new_files_are_quoted() -> None:
    result = call("init", "new runs/own.yaml", "--env", "CartPole-v1", "--teacher", "zoo:cartpole-ppo")
    assert result.stdout == "new runs/own.yaml: run it with `rldistill run 'new runs/own.yaml'`\n"
    assert "rldistill run 'new runs/own.yaml'" in Path("new runs/own.yaml").read_text()


def test_file_of_any_name_has_a_run() -> None:
    result = call("init", "my #1.yaml", "--env", "CartPole-v1", "--teacher", "zoo:cartpole-ppo")
    assert result.exit_code == 0, result.output
    run = rldistill.load_run("my #1.yaml", environment={})
    assert (run.name, run.out) == ("my-1", Path("runs/my-1"))


def test_file_in_place_of_a_folder_is_refused() -> None:
    Path("examples").write_text("mine")
    new = ["init", "examples/own.yaml", "--env", "CartPole-v1", "--teacher", "zoo:cartpole-ppo"]
    for command in (["examples", "spread"], new):
        result = call(*command)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {command[0]}: ")
        assert result.stderr.endswith("/examples is a file, expected a folder. Name a file elsewhere.\n")
    assert Path("examples").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "init: there is no answer. Give --env ENV and --teacher TEACHER."),
        (["--env", "CartPole-v7"], "env.id: Gymnasium has no environment 'CartPole-v7'. Did you mean 'CartPole-v1'?"),
        (["--env", "CartPole-v1", "--teacher", "none.zip"], "teacher: none.zip: there is no such file or folder."),
        (["--env", "CartPole-v1", "--teacher", "zoo:pong-dqn"], "zoo:pong-dqn and CartPole-v1 do not fit: observation"),
    ],
)
def test_wrong_answers_are_refused_in_one_line(arguments: list[str], problem: str, tmp_path: Path) -> None:
    result = call("init", *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"error: {problem}")
    assert not [*tmp_path.iterdir()]
