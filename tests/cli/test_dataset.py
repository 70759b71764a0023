"""`rldistill dataset`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import Result
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.envs.spaces import spec_from_env
from rldistill.io.lock import lock_folder
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Mlp
from rldistill.students.storage import load_native, save_policy

from ..conftest import CARTPOLE

pytestmark = pytest.mark.slow

SMALL = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=32, epsilon=0.4)


def block_hashes(folder: Path) -> list[str]:
    return [block.sha256 for block in Manifest.read(folder).blocks]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_commands_of_datasets(teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari", reason="needs the extra minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["dataset", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    save_policy(teacher, tmp_path / "teacher", {})
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "env": {"id": "CartPole-v1"},
                "teacher": str(tmp_path / "teacher"),
                "out": str(tmp_path / "run"),
                "collect": {"steps": 160, "envs_per_stream": 2, "epsilon": 0.3},
            }
        )
    )
    assert CliRunner().invoke(app, ["collect", str(file)]).exit_code == 0
    extend = ["dataset", "extend", str(file), "--steps", "160"]
    with lock_folder(tmp_path / "run"), ThreadPoolExecutor() as pool:  # as while another process distills
        refused = pool.submit(CliRunner().invoke, app, extend).result()
    assert (refused.exit_code, "in use by" in refused.output) == (2, True)
    assert "320" in run("extend", str(file), "--steps", "160")
    assert "480" in run("extend", str(file), "--steps", "160")
    assert Dataset.read([tmp_path / "run" / "dataset"]).num_steps == 480
    run("relabel", str(tmp_path / "run"), str(tmp_path / "teacher"), "--out", str(tmp_path / "again"))
    hashes = [set(block_hashes(folder)) for folder in (tmp_path / "run" / "dataset", tmp_path / "again")]
    assert hashes[0] == hashes[1]
    run("export", str(tmp_path / "run"), "minari:cli/it-v0")
    run("import", "minari:cli/it-v0", "--out", str(tmp_path / "back"))
    again = CliRunner().invoke(app, ["dataset", "import", "minari:cli/it-v0", "--out", str(tmp_path / "back")])
    assert (again.exit_code, "--overwrite" in again.output) == (2, True)
    merged = CliRunner().invoke(
        app, ["dataset", "merge", str(tmp_path / "run"), str(tmp_path / "again"), "--out", str(tmp_path / "all")]
    )
    assert (merged.exit_code, "would count twice" in merged.output) == (2, True)


def test_file_for_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("env: {id: CartPole-v1}")
    for verb in ("info", "check"):
        result = CliRunner().invoke(app, ["dataset", verb, str(tmp_path / "run.yaml")])
        assert (result.exit_code, "there is no such file" in result.output) == (2, True)


def test_views_of_students_are_refused_for_teachers_with_other_views(tmp_path: Path) -> None:
    env = EnvConfig("CartPole-v1", views=Views(student=(Wrapper("StackFrames", {"stack": 2}),)))
    seeing = Mlp((8,)).build(spec_from_env(CARTPOLE)).eval()
    collect(env, seeing, SMALL, tmp_path / "first")
    network = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save(weights, tmp_path / "agent.cleanrl_model")
    folders = [str(tmp_path / name) for name in ("first", "agent.cleanrl_model", "second")]
    result = CliRunner().invoke(app, ["dataset", "relabel", *folders[:2], "--out", folders[2]])
    assert (result.exit_code, "collect with teacher_obs: true" in result.output) == (2, True)


def test_dataset_alone_is_distilled(teacher: NetworkPolicy, tmp_path: Path) -> None:
    collect(CARTPOLE, teacher, SMALL, tmp_path / "dataset", progress=False)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["dataset", "distill", str(tmp_path / "dataset"), *arguments])

    out = str(tmp_path / "student")
    done = run("--student", "{type: mlp, hidden: [4]}", "--out", out, "epochs=3", "losses=[action_nll]", "--seed", "2")
    assert done.exit_code == 0, done.output
    assert f"student: {out}" in done.output
    assert load_native(Path(out)).config == Mlp((4,))
    for arguments, message in (
        (("--student", "mlp", "--out", out), f"--out: {out} exists. Name another folder."),
        (("--student", "mpl", "--out", f"{out}2"), "--student: "),
        (("--student", "mlp", "--out", f"{out}2", "epocs=3"), "distill.epocs: "),
        (("--student", "mlp", "--out", f"{out}2", "epochs"), "distill: found 'epochs', expected key=value"),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr
    assert not Path(f"{out}2").exists()
