"""The whole pipeline in unusual places: names, folders and settings of the system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
PLACES = ["Bäume und 木", " a  b ", "plain", "linked", "read-only home", "no home", "LANG=C", "-O", "clock"]


@pytest.mark.parametrize("place", PLACES)
def test_pipeline_works_in(place: str, tmp_path: Path) -> None:
    folder = tmp_path / (place if place in PLACES[:2] else "folder")
    folder.mkdir()
    (folder / "run.yaml").write_text(RUN, encoding="utf-8")
    (folder / "my_teacher.py").write_text((JUMPS if place == "clock" else "") + TEACHER)
    if place == "linked":
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    env = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    if place == "read-only home":
        (tmp_path / "home").mkdir(mode=0o500)
        env["HOME"] = "/proc/1" if os.geteuid() == 0 else str(tmp_path / "home")
    if place == "no home":
        env.pop("HOME", None)
    if place == "LANG=C":
        env |= {"LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    options = ["-O"] if place == "-O" else []
    command = [sys.executable, *options, "-m", "rldistill", "run", "run.yaml"]
    done = subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "runs" / "run" / "report.html").stat().st_size > 10_000


def test_dataset_behind_a_link_is_used_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN, encoding="utf-8")
    (tmp_path / "my_teacher.py").write_text(TEACHER)
    dataset = tmp_path / "runs" / "run" / "dataset"

    def call(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "rldistill", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
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
