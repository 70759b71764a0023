"""`rldistill teachers`, and options of teachers in other commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from stable_baselines3 import PPO
from typer.testing import CliRunner

import rldistill
from rldistill.cli.main import app
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.data.manifest import Manifest
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.compare_teachers import short_names
from rldistill.io.atomic import read_jsonl
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Mlp
from rldistill.students.storage import save_policy

from .. import commands
from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow


def teachers(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["teachers", *arguments])
    return result.exit_code, result.stdout


def test_shipped_teachers_are_listed_with_their_files() -> None:
    code, out = teachers("list", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert len(rows) >= 7
    for name, row in rows.items():
        folder = Path(rldistill.__file__).parent / "zoo" / name.removeprefix("zoo:")
        evaluation = json.loads((folder / "evaluation.json").read_text())
        run = yaml.safe_load((folder / "config.yaml").read_text())
        assert row["mean_return"] == evaluation["policies"]["teacher"]["mean"]["value"]
        assert row["env"] == evaluation["env"] == run["env"]["id"]
        assert read_jsonl(folder / "curve.jsonl")[-1]["step"] >= row["env_steps"] > 0
        assert row["license"] == "MIT"
        assert row["episodes"] >= 30
        assert (folder / "policy.safetensors").stat().st_size <= (3_500_000 if name == "zoo:pong-dqn" else 1_000_000)
        if "float32" in evaluation["policies"]:  # of the same episodes
            assert evaluation["policies"]["float32"]["mean"]["value"] == pytest.approx(row["mean_return"], rel=0.01)
        assert name in teachers("list")[1]


def test_exit_code_of_true_and_false_claims(teacher: NetworkPolicy, tmp_path: Path) -> None:
    save_policy(teacher, tmp_path, {})
    arguments = ["verify", str(tmp_path), "--env", "CartPole-v1", "--episodes", "5", "--quiet", "--json"]
    code, out = teachers(*[word for word in arguments if word != "--quiet"])
    result = json.loads(out)
    assert code == 0
    assert teachers(*arguments, "--claimed", str(result["mean"]["value"]))[0] == 0
    assert teachers(*arguments, "--claimed", str(result["mean"]["value"] * 3 + 1000))[0] == 1
    assert "verified" in teachers("verify", str(tmp_path), "--env", "CartPole-v1", "--episodes", "5")[1]


def test_teacher_of_another_environment_is_recognized_by_its_folder(tmp_path: Path) -> None:
    agent = tmp_path / "CartPole-v1_1" / "CartPole-v1.zip"
    agent.parent.mkdir()
    PPO("MlpPolicy", "CartPole-v1", seed=0).save(agent)
    agent.with_suffix("").mkdir()
    (agent.with_suffix("") / "args.yml").write_text("env: Balance-v3")
    arguments = ["--episodes", "1", "--json"]
    result = json.loads(teachers("verify", str(agent), "--env", "CartPole-v1", *arguments)[1])
    assert "trained on Balance-v3" in result["suspicious"][-1]
    assert not result["ok"]
    (agent.with_suffix("") / "args.yml").write_text("env: CartPole-v0")
    assert "trained" not in teachers("verify", str(agent), "--env", "CartPole-v1", *arguments)[1]
    code, out = teachers("verify", str(agent), "--env", "Acrobot-v1", *arguments)
    assert code == 1
    (problem,) = json.loads(out)["suspicious"]
    assert problem.startswith(f"{agent} and Acrobot-v1 do not fit: observation shape is")
    assert "trained on CartPole-v0" in problem
    small = ["--env", "Acrobot-v1", "--episodes", "1", "--steps", "64"]
    message = CliRunner().invoke(app, ["teachers", "compare", str(agent), *small]).stderr
    assert message.startswith(f"error: {agent} and Acrobot-v1 do not fit")
    assert "trained on CartPole-v0" in message


def test_two_teachers_are_compared(teacher: NetworkPolicy, tmp_path: Path) -> None:
    save_policy(teacher, tmp_path / "a", {})
    save_policy(teacher, tmp_path / "b", {})
    paths = [str(tmp_path / name) for name in "ab"]
    small = ["--env", "CartPole-v1", "--episodes", "3", "--steps", "600"]
    files = ["--out", str(tmp_path / "result.json"), "--page", str(tmp_path / "teachers.html")]
    code, out = teachers("compare", *paths, *small, *files)
    assert code == 0
    page = (tmp_path / "teachers.html").read_text()
    assert f"Take {paths[0]}" in page or f"Take {paths[1]}" in page or "Take ensemble" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "take " in " ".join(out.split())
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["agreement"] == {f"{paths[0]} / {paths[1]}": 1.0}


def test_wrong_name_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["teachers", "verify", "zoo:pong-dqm", "--env", "ALE/Pong-v5"])
    assert result.exit_code == 2
    assert "Did you mean 'pong-dqn'?" in result.stderr
    arguments = ["teachers", "verify", "q.onnx,head=probs", "--env", "CartPole-v1"]
    message = CliRunner().invoke(app, arguments).stderr
    assert "teacher.head: found 'probs'" in message
    assert "q_values" in message


def test_check_of_a_teacher_from_elsewhere_can_be_skipped(tmp_path: Path) -> None:
    policy = Mlp((4,)).build(spec_from_env(CARTPOLE)).eval()
    with torch.no_grad():
        policy.output.weight.zero_()
    save_policy(policy, tmp_path / "still", {})
    file = tmp_path / "run.yaml"
    document = {"env": {"id": "CartPole-v1"}, "teacher": str(tmp_path / "still"), "out": str(tmp_path / "run")}
    file.write_text(yaml.safe_dump({**document, "collect": {"steps": 640, "epsilon": 0.5}}))
    result = commands.run("collect", str(file), "verify=false")
    assert result.returncode == 0
    assert "looks wrong" not in result.stderr
    result = commands.run("collect", str(file), "--overwrite")
    assert result.returncode == 0
    assert "warning: the teacher looks wrong: constant actions" in result.stderr


@pytest.fixture
def onnx_file(tmp_path: Path) -> str:
    """Write a graph with two outputs that fit CartPole."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, save_model

    weights = helper.make_tensor("weights", TensorProto.FLOAT, (4, 2), [0.0, 0.0, 0.0, 0.0, -1.0, 1.0, -1.0, 1.0])
    nodes = [helper.make_node("MatMul", ["obs", "weights"], ["left"]), helper.make_node("Neg", ["left"], ["right"])]
    obs, left, right = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("obs", 4), ("left", 2), ("right", 2))
    )
    graph = helper.make_graph(nodes, "policy", [obs], [left, right], [weights])
    opset = helper.make_opsetid("", 17)
    save_model(helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "q.onnx")
    return str(tmp_path / "q.onnx")


def test_teacher_options_of_commands(onnx_file: str, teacher: NetworkPolicy, tmp_path: Path) -> None:
    written = f"{onnx_file},head=q_values,scale=0.5,output=left"
    code, out = teachers("verify", written, "--env", "CartPole-v1", "--episodes", "2", "--json")
    assert code in (0, 1), out
    assert json.loads(out)["teacher"] == onnx_file
    save_policy(teacher, tmp_path / "native", {})
    small = ["--env", "CartPole-v1", "--episodes", "1", "--steps", "300", "--json"]
    code, out = teachers("compare", written, str(tmp_path / "native"), *small)
    assert (code, list(json.loads(out)["teachers"])[:2]) == (0, [onnx_file, str(tmp_path / "native")])


def test_teacher_is_verified_with_its_own_view(onnx_file: str) -> None:
    env = "{id: CartPole-v1, views: {student: [{name: TimeFeature}]}}"
    written = f"{onnx_file},head=q_values,output=left"
    assert json.loads(teachers("verify", written, "--env", env, "--episodes", "2", "--json")[1])["mean"]["value"] > 0


def test_teacher_options_of_relabel(onnx_file: str, teacher: NetworkPolicy, tmp_path: Path) -> None:
    collect(CARTPOLE, teacher, CollectConfig(steps=64, block_steps=8), tmp_path / "dataset")
    for options, code, text in (
        (["output=left,head=categorical"], 0, ""),
        (["output=left,head=q_values", "--overwrite"], 0, ""),
        (["activation=tanh", "--overwrite"], 2, "teacher.activation:"),
    ):
        relabel = [str(tmp_path / "dataset"), f"{onnx_file},{options[0]}", "--out", str(tmp_path / "new"), "--quiet"]
        result = CliRunner().invoke(app, ["dataset", "relabel", *relabel, *options[1:]])
        assert (result.exit_code, text in result.output) == (code, True), result.output
        head = "categorical" if "categorical" in options[0] else "q_values"
        assert [head_of(tmp_path / name) for name in ("dataset", "new")] == ["q_values", head]


def head_of(folder: Path) -> str:
    return Manifest.read(folder).spec.head.kind


def test_options_that_do_not_apply_are_refused(teacher: NetworkPolicy, tmp_path: Path) -> None:
    save_policy(teacher, tmp_path / "a", {})
    path, env = str(tmp_path / "a"), ["--env", "CartPole-v1"]
    for arguments, message in (
        (["verify", f"{path},scale=2", *env], f"teacher.scale: {path} is a folder of rldistill, which"),
        (["verify", f"{path},activation=tanh", *env], "teacher.activation:"),
        (["verify", f"{path},head=q_value", *env], "Did you mean 'q_values'"),
        (["compare", f"{path},output=x", *env], "teacher.output:"),
        (["compare", f"{path},heed=q_values", *env], "Did you mean 'head'"),
        (["compare", f"{path},head=q_value", *env], "Did you mean 'q_values'"),
        (
            ["verify", path, *env, "--env-kwarg", "sutton_barto"],
            "--env-kwarg: found 'sutton_barto', expected key=value",
        ),
    ):
        result = CliRunner().invoke(app, ["teachers", *arguments])
        assert (result.exit_code, message in result.output) == (2, True), result.output


def test_keyword_arguments_of_the_environment(teacher: NetworkPolicy, tmp_path: Path) -> None:
    save_policy(teacher, tmp_path, {})
    verify = ["verify", str(tmp_path), "--env", "CartPole-v1", "--episodes", "2", "--json"]
    usual, changed = (
        json.loads(teachers(*verify, *more)[1])["mean"]["value"]
        for more in ([], ["--env-kwarg", "sutton_barto_reward=true"])
    )
    assert usual > 0 >= changed
    text = "{id: CartPole-v1, kwargs: {sutton_barto_reward: true}}"
    assert json.loads(teachers("verify", str(tmp_path), "--env", text, *verify[4:])[1])["mean"]["value"] == changed
    for own in ("7", "[1]"):
        wrong = ["--env", f"{{id: CartPole-v1, kwargs: {own}}}", "--env-kwarg", "sutton_barto_reward=true"]
        result = CliRunner().invoke(app, ["teachers", "verify", str(tmp_path), *wrong])
        assert (result.exit_code, result.stderr) == (2, f"error: env.kwargs: found {own}, expected keys and values\n")


def test_short_names_leave_out_the_common_folder() -> None:
    assert short_names(["/a/b/c/x.zip", "/a/b/d/x.zip", "ensemble"]) == ["c/x.zip", "d/x.zip", "ensemble"]
    assert short_names(["a/x.zip", "/b/x.zip"]) == ["a/x.zip", "/b/x.zip"]
    assert short_names(["/a/b/x.zip"]) == ["/a/b/x.zip"]
