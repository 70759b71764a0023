"""The command `rldistill export`."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import save_policy

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow
FAST = ["--to", "onnx", "--episodes", "2", "--states", "100", "--quiet"]


@pytest.fixture
def run(teacher: NetworkPolicy, tmp_path: Path) -> Path:
    """Folder of a run with two students."""
    for name in ("small", "large"):
        save_policy(teacher, tmp_path / "run" / "students" / name / "seed-0", {})
    (tmp_path / "run" / "config.yaml").write_text("env: {id: CartPole-v1}\n")
    return tmp_path / "run"


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, result.output


def test_student_of_a_run_and_its_verification(run: Path) -> None:
    assert invoke(run, "--student", "small", *FAST)[0] == 0
    assert (run / "export" / "small" / "student.onnx").exists()
    code, text = invoke("verify", run / "export" / "small", "--json", "--quiet")
    assert code == 0
    assert json.loads(text)["formats"]["onnx"]["wrong_vectors"] == 0


def test_student_plays_in_the_environment_of_the_evaluation(run: Path) -> None:
    settings = "env: CartPole-v1\nevaluate: {env_kwargs: {max_episode_steps: 7}}\n"
    (run / "config.yaml").write_text(settings)
    assert invoke(run, "--student", "small", *FAST)[0] == 0
    certificate = json.loads((run / "export" / "small" / "parity.json").read_text())
    assert certificate["formats"]["onnx"]["closed_loop"]["mean"] == 7


CLASS_OF_MINE = """
from rldistill import Mlp
from rldistill.core.fields import validated_dataclass

@validated_dataclass
class Narrow(Mlp):
    pass
"""


def test_environment_and_classes_of_a_run_file_are_trusted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "student_of_mine.py").write_text(CLASS_OF_MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    student = import_module("student_of_mine").Narrow((4,)).build(spec_from_env(EnvConfig("CartPole-v1")))
    save_policy(student.eval(), run / "students" / "mine" / "seed-0", {})
    env = {"id": "CartPole-v1", "kwargs": {"max_episode_steps": 7}}
    document = {"env": env, "teacher": "zoo:cartpole-ppo", "students": {"mine": {"type": "student_of_mine:Narrow"}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(document))
    code, text = invoke(run, "--student", "mine", *FAST)
    assert code == 2
    assert "found 'student_of_mine:Narrow'" in " ".join(text.split())
    assert invoke(run, "--student", "mine", "--env", tmp_path / "mine.yaml", *FAST)[0] == 0
    certificate = json.loads((run / "export" / "mine" / "parity.json").read_text())
    assert certificate["formats"]["onnx"]["closed_loop"]["mean"] <= 7


def test_any_policy(run: Path, tmp_path: Path) -> None:
    policy = run / "students" / "small" / "seed-0"
    assert invoke(policy, "--env", "CartPole-v1", "--out", tmp_path / "export", *FAST)[0] == 0
    assert (tmp_path / "export" / "parity.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "has the students large, small. Name one."),
        (["RUN", "--student", "smal"], "Did you mean 'small'?"),
        (["RUN", "--student", "small", "--to", "onxx"], "--to: found 'onxx', expected some of onnx,int8,"),
        (["RUN", "--student", "small", "--to", "c, onxx"], "Did you mean 'onnx'?"),
        (["POLICY", "--out", "x"], "Name the environment of the policy."),
        (["POLICY", "--env", "CartPole-v1"], "--out: name a folder"),
        (["POLICY", "--env", "CartPole-v1", "--student", "small", "--out", "x"], "Remove the option."),
        (["missing", "--env", "CartPole-v1", "--out", "x"], "there is no such file"),
        (["verify", "missing"], "there is no such file"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments: list[str], message: str, run: Path) -> None:
    places = {"RUN": str(run), "POLICY": str(run / "students" / "small" / "seed-0")}
    code, text = invoke(*(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert message in " ".join(text.split())
    assert "Traceback" not in text


@pytest.mark.parametrize(
    "settings",
    [
        "env: 7",
        "env: {id: 7}",
        "evaluate: {}",
        "env: CartPole-v1\nevaluate: 7",
        "env: CartPole-v1\nevaluate: {env_kwargs: 7}",
        "env: CartPole-v1\nevaluate: {env_kwargs: {render_mode: [os.abort]}}",
    ],
)
def test_wrong_settings_of_the_run_end_in_one_line(settings: str, run: Path) -> None:
    (run / "config.yaml").write_text(settings)
    code, text = invoke(run, "--student", "small", *FAST)
    assert code == 2
    assert "Traceback" not in text


def test_environment_with_code_in_the_folder_of_a_run_is_refused(run: Path) -> None:
    (run / "config.yaml").write_text("env: {id: 'os:abort'}\n")
    code, text = invoke(run, "--student", "small", *FAST)
    assert code == 2
    assert "names code of its own" in text


def test_existing_export_is_kept(run: Path) -> None:
    assert invoke(run, "--student", "small", *FAST)[0] == 0
    before = (run / "export" / "small" / "student.onnx").read_bytes()
    code, text = invoke(run, "--student", "small", *FAST)
    assert code == 2
    assert "--overwrite" in text
    assert (run / "export" / "small" / "student.onnx").read_bytes() == before
    assert invoke(run, "--student", "small", "--overwrite", *FAST)[0] == 0


def test_altered_file_fails_the_verification(run: Path) -> None:
    assert invoke(run, "--student", "small", *FAST)[0] == 0
    folder = run / "export" / "small"
    shutil.copy(folder / "parity.json", folder / "student.onnx")
    code, text = invoke("verify", folder)
    assert code == 1
    assert "missing or changed" in text
