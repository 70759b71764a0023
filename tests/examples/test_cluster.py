"""Files for SLURM, Kubernetes and Ray, and the commands of their page, as far as one machine can run them."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import rldistill
from rldistill.cli.main import app
from rldistill.policies.network import NetworkPolicy
from rldistill.run.config import load_run
from rldistill.run.stages import run_collect
from rldistill.students.storage import save_policy

from ..conftest import manifest_bytes

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples" / "cluster"
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def run_file(folder: Path, teacher: NetworkPolicy) -> None:
    save_policy(teacher, folder / "teacher", {})
    document: dict[str, Any] = {
        "env": {"id": "CartPole-v1"},
        "teacher": "teacher",
        "collect": {"steps": 400, "block_steps": 25, "num_streams": 3, "envs_per_stream": 2, "epsilon": 0.3},
        "students": {"tree": {"type": "tree", "max_depth": 3}},
        "distill": {"losses": ["action_nll"]},
        "evaluate": {"episodes": 2, "videos": False},
        "seeds": [0, 1],
        "verify": False,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document))


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """Environment in which `rldistill` is this package."""
    command = tmp_path / "bin" / "rldistill"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "rldistill $*" >> {tmp_path}/calls\nexec {sys.executable} -m rldistill "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(Path(rldistill.__file__).parents[1])}


def test_the_array_of_slurm_makes_the_dataset_of_one_process(
    tmp_path: Path, teacher: NetworkPolicy, stub: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file(tmp_path, teacher)

    def submit(stage: str, tasks: int = 0) -> None:
        command = ["bash", str(CLUSTER / "slurm.sh"), "run.yaml", stage]
        for task in range(1, tasks + 1) or [0]:
            own = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(tasks)} if task else {}
            subprocess.run(command, cwd=tmp_path, env=stub | own, check=True, stdout=subprocess.DEVNULL)

    submit("collect", 2)
    submit("seal")
    done = subprocess.run(
        ["bash", str(CLUSTER / "slurm.sh"), "run.yaml", "none"], cwd=tmp_path, env=stub, capture_output=True
    )
    assert done.returncode == 2
    monkeypatch.chdir(tmp_path)
    run_collect(load_run(tmp_path / "run.yaml", ["out=whole"]), quiet=True)
    assert manifest_bytes(tmp_path / "runs/run/dataset") == manifest_bytes(tmp_path / "whole/dataset")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[:2] == [f"rldistill collect run.yaml --shard {task}/2 --quiet out=runs/run" for task in (1, 2)]


def test_pods_of_kubernetes_have_the_shards_from_1_on(tmp_path: Path) -> None:
    job = yaml.safe_load((CLUSTER / "kubernetes.yml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (tmp_path / "rldistill").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "rldistill").chmod(0o755)
    count, shards = job["spec"]["completions"], []
    for index in range(count):
        variables = {"JOB_COMPLETION_INDEX": str(index), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        command = [*container["command"], *container["args"]]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        shards += re.findall(r"--shard (\S+)", done.stdout)
    assert shards == [f"{number}/{count}" for number in range(1, count + 1)]


def test_the_cluster_of_ray_installs_the_extra() -> None:
    cluster = yaml.safe_load((CLUSTER / "ray.yml").read_text())
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert "pip install 'rldistill[box2d,ray]'" in cluster["setup_commands"]


def test_the_commands_of_the_page_run(tmp_path: Path, teacher: NetworkPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    run_file(tmp_path, teacher)
    monkeypatch.chdir(tmp_path)
    many, shards = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in shards.splitlines():
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "runs/run/report.html").exists()
    for line in many.splitlines():
        words = shlex.split(line)
        options = {word: value for word, value in itertools.pairwise(words) if word.startswith("--")}
        settings = [f"execution.{word.removeprefix('--')}={value}" for word, value in options.items()]
        execution = load_run(CLUSTER / "workers.yaml", settings + [word for word in words if "=" in word]).execution
        assert execution.workers == int(options["--workers"])
        assert execution.backend == options.get("--backend", "processes")
