"""Students that are published on the Hugging Face Hub, and runs whose teacher is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from rldistill.io.atomic import read_json
from rldistill.policies.network import NetworkPolicy
from rldistill.run.config import load_run
from rldistill.run.stages import run_all
from rldistill.students.storage import load_native, save_policy

from .. import commands, hub_server
from ..hub_server import Hub

pytest.importorskip("huggingface_hub", reason="needs the extra hub")
pytestmark = pytest.mark.slow


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server.serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def finished(teacher: NetworkPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an evaluated run of two students."""
    folder = tmp_path_factory.mktemp("finished")
    save_policy(teacher, folder / "teacher", {})
    document = {
        "env": {"id": "CartPole-v1"}, "teacher": str(folder / "teacher"), "verify": False, "out": str(folder / "run"),
        "collect": {"steps": 600, "epsilon": 0.3}, "distill": {"epochs": 6, "batch_size": 32, "learning_rate": 0.01},
        "students": {"small": {"type": "mlp", "hidden": [8]}, "tree": {"type": "tree"}}, "evaluate": {"episodes": 2},
        "export": {"formats": ["onnx"], "states": 32, "episodes": 1, "students": ["small"]},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    run_all(load_run(folder / "run.yaml", [], {}), quiet=True)
    return folder / "run"


def command(hub: Hub, folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "secret", **environment}
    done = commands.run(*arguments, folder=folder, before=f"os.environ.update({variables!r})")
    return done.returncode, done.stdout, done.stderr


def test_student_is_pushed_and_read_again(hub: Hub, finished: Path, tmp_path: Path) -> None:
    push = ("hub", "push", str(finished), "--student", "small", "--repo", "me/small")
    code, out, err = command(hub, tmp_path, *push)
    assert (code, err) == (0, "")
    assert out.startswith(f"{hub.url}/me/small: README.md, export/parity.json, export/student.onnx, ")
    files = hub.repositories["me/small"].files
    assert files["policy.json"] == (finished / "students/small/seed-0/policy.json").read_bytes()
    assert files["replay.mp4"] == (finished / "videos/small-best.mp4").read_bytes()
    assert json.loads(files["export/parity.json"])["fingerprint"]
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert [model["name"] for model in front["model-index"]] == ["small"]
    assert 'load_policy("hub:me/small")' in card
    assert "| tree" not in card
    verify = ("teachers", "verify", "hub:me/small", "--env", "CartPole-v1", "--episodes", "2", "--json")
    code, out, err = command(hub, tmp_path, *verify, HF_TOKEN="")
    assert code in (0, 1), err  # a student of two episodes need not be good
    assert json.loads(out)["teacher"] == "hub:me/small"

    code, _, err = command(hub, tmp_path, *push)
    assert (code, err.count("\n")) == (2, 1)
    assert "--repo: me/small: it has files already. Name another repository, or replace them with --overwrite." in err
    push = ("hub", "push", str(finished), "--student", "tree", "--repo", "me/small", "--overwrite")
    code, _, err = command(hub, tmp_path, *push)
    assert code == 0
    assert "warning: no exported files. `rldistill export" in err
    files = hub.repositories["me/small"].files
    assert files["policy.json"] == (finished / "students/tree/seed-0/policy.json").read_bytes()
    assert not [name for name in files if name.startswith("export")]  # of the other student


def test_private_repositories_and_refusals(hub: Hub, finished: Path, tmp_path: Path) -> None:
    push = ("hub", "push", str(finished), "--student", "tree")
    assert command(hub, tmp_path, *push, "--repo", "me/private", "--private")[0] == 0
    assert hub.repositories["me/private"].private
    hub.add("me/public")
    empty = tmp_path / "empty"
    empty.mkdir()
    unevaluated = tmp_path / "unevaluated"
    shutil.copytree(finished, unevaluated)
    (unevaluated / "evaluation.json").unlink()
    cases = [
        ((*push, "--repo", "me/public", "--private"), {}, "--private: me/public exists and is public."),
        ((*push, "--repo", "me/new"), {"HF_TOKEN": ""}, "--repo: there is no token of the Hub. Log in"),
        ((*push, "--repo", "me/new"), {"HF_TOKEN": "read-only"}, "--repo: me/new: the token does not allow it."),
        (
            (*push, "--repo", "me/new"),
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            "--repo: me/new: the Hub cannot be reached",
        ),
        ((*push, "--repo", "new"), {}, "--repo: found 'new', expected OWNER/NAME"),
        (("hub", "push", str(finished), "--repo", "me/new"), {}, "has the students small, tree. Name one."),
        (("hub", "push", str(empty), "--repo", "me/new"), {}, "it is no folder of a run with students."),
        (("hub", "push", str(unevaluated), "--student", "tree", "--repo", "me/new"), {}, "no evaluation yet."),
    ]
    for arguments, environment, problem in cases:
        code, _, err = command(hub, tmp_path, *arguments, **environment)
        assert (code, err.count("\n")) == (2, 1), err
        assert problem in err
    assert "me/new" not in hub.repositories


def test_run_goes_on_with_the_commit_that_it_began_with(hub: Hub, teacher: NetworkPolicy, tmp_path: Path) -> None:
    save_policy(teacher, tmp_path / "policy", {})
    files = {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()}
    repository = hub.add("me/teacher", **files)
    first = repository.revisions["main"]
    document = {
        "env": {"id": "CartPole-v1"}, "teacher": "hub:me/teacher", "verify": False, "out": "run",
        "collect": {"steps": 600, "epsilon": 0.3}, "distill": {"epochs": 6, "batch_size": 32, "learning_rate": 0.01},
        "students": {"small": {"type": "mlp", "hidden": [8]}}, "evaluate": {"episodes": 2, "videos": False},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    code, _, err = command(hub, tmp_path, "collect", "run.yaml", "--quiet")
    assert code == 0, err
    assert read_json(tmp_path / "run/provenance.json")["hub"] == {"hub:me/teacher": first}
    other = load_native(tmp_path / "policy")
    with torch.no_grad():
        other.output.bias += 1.0  # type: ignore[operator]
    save_policy(other, tmp_path / "other", {})
    repository.commit({path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()})
    code, _, err = command(hub, tmp_path, "run", "run.yaml", "--resume", "--quiet")
    assert code == 0, err
    assert read_json(tmp_path / "run/provenance.json")["hub"] == {"hub:me/teacher": first}
    code, _, err = command(hub, tmp_path, "report", "run.yaml", "--quiet", HF_HUB_OFFLINE="1")
    assert code == 0, err
    code, _, err = command(hub, tmp_path, "run", "run.yaml", "teacher=hub:me/teacher@main", "--resume")
    assert (code, err.count("\n")) == (2, 1), err
    assert "the teacher" in err
