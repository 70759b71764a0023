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
