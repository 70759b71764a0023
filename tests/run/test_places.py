"""The whole pipeline in unusual places: names, folders and settings of the system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .. import commands

pytestmark = pytest.mark.slow

RUN = """
env: {id: CartPole-v1}
teacher: my_teacher:make
verify: false
collect: {steps: 400, epsilon: 0.3}
distill: {epochs: 4, batch_size: 32}
students: {mlp: {type: mlp, hidden: [8]}}
evaluate: {episodes: 4, videos: false}
"""
TEACHER = """
import torch
from rldistill.students import Mlp
def make(spec):
    torch.manual_seed(0)
    policy = Mlp((8,)).build(spec)
    with torch.no_grad():
        policy.output.weight *= 30
    return policy
"""
JUMPS = """
import itertools, time
now, count = time.time, itertools.count()
time.time = lambda: now() - 86_400 * next(count)
"""
FOLDERS = ["Bäume und 木", " a  b ", "plain", "linked", "clock"]
PROCESSES = ["no home", "read-only home, LANG=C", "-O"]


def write_run(folder: Path, teacher: str = TEACHER) -> None:
    (folder / "run.yaml").write_text(RUN, encoding="utf-8")
    (folder / "my_teacher.py").write_text(teacher)


def require_report(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "runs" / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("place", FOLDERS)
def test_pipeline_works_in_folder(place: str, tmp_path: Path) -> None:
    folder = tmp_path / (place if place in FOLDERS[:2] else "folder")
    folder.mkdir()
    write_run(folder, (JUMPS if place == "clock" else "") + TEACHER)
    if place == "linked":
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    require_report(folder, commands.run("run", "run.yaml", folder=folder))


@pytest.mark.parametrize("place", PROCESSES)
def test_pipeline_works_with(place: str, tmp_path: Path) -> None:
    write_run(tmp_path)
    env = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    if "read-only home" in place:
        (tmp_path / "home").mkdir(mode=0o500)
        env["HOME"] = "/proc/1" if os.geteuid() == 0 else str(tmp_path / "home")
    elif place == "no home":
        env.pop("HOME", None)
    if "LANG=C" in place:
        env |= {"LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, *(["-O"] if place == "-O" else []), "-m", "rldistill", "run", "run.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
        errors="replace",
    )  # fmt: skip
    require_report(tmp_path, done)


def test_dataset_behind_a_link_is_used_where_it_is(tmp_path: Path) -> None:
    write_run(tmp_path)
    dataset = tmp_path / "runs" / "run" / "dataset"

    def call(*arguments: str) -> tuple[int, str]:
        done = commands.run(*arguments, folder=tmp_path)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    assert call("collect", "run.yaml")[0] == 0
    dataset.rename(tmp_path / "elsewhere")
    dataset.symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere" / "manifest.json").read_bytes()
    assert call("run", "run.yaml", "--resume")[0] == 0
    assert call("dataset", "check", str(dataset))[0] == 0
    assert dataset.is_symlink()
    assert (tmp_path / "elsewhere" / "manifest.json").read_bytes() == before
    for target in ("nowhere", "runs/run/dataset"):  # a dangling link, and one that leads to itself
        dataset.unlink()
        dataset.symlink_to(tmp_path / target)
        code, text = call("collect", "run.yaml", "--resume")
        assert code == 2
        assert text.strip().splitlines()[-1].startswith("error: ")
