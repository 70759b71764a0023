"""Worker processes that are killed, stopped, or left by their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .. import commands
from ..conftest import manifest_bytes

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from pathlib import Path
from rldistill.cli.main import main
if __name__ == "__main__":
    main()
"""
RUN = """
env: {id: CartPole-v1}
teacher: tests_teacher:make
verify: false
collect: {steps: STEPS, num_streams: 4, block_steps: 64}
execution: {workers: 2}
students: {mlp: {type: mlp, hidden: [8]}}
"""
TEACHER = """
import torch
from rldistill.students import Mlp
def make(spec):
    torch.manual_seed(0)
    return Mlp((8,)).build(spec)
"""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_of(pid: int) -> list[int]:
    """Return the processes that the server of a process has forked."""
    (server,) = [child for child in children(pid) if b"forkserver" in cmdline(child)]
    return children(server)


@pytest.fixture
def process(tmp_path: Path) -> subprocess.Popen[str]:
    return start(tmp_path, 400_000)


def start(tmp_path: Path, steps: int) -> subprocess.Popen[str]:
    """Start a collection, and return when its first block is there."""
    (tmp_path / "run.yaml").write_text(RUN.replace("STEPS", str(steps)))
    (tmp_path / "tests_teacher.py").write_text(TEACHER)
    command = [sys.executable, "-c", PROGRAM, "collect", "run.yaml"]
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not [*tmp_path.glob("runs/run/dataset/blocks/*.parquet")] and time.monotonic() < deadline:
        assert started.poll() is None, started.communicate()
        time.sleep(0.1)
    return started


def test_killed_worker_is_replaced_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    process = start(tmp_path, 8_192)
    os.kill(pid := workers_of(process.pid)[0], signal.SIGKILL)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"warning: execution.workers: worker {pid} was killed; a new one goes on with its job" in text
    assert "Traceback" not in text
    whole = ("collect", "run.yaml", "execution.workers=1", "out=whole", "--quiet")
    assert commands.run(*whole, folder=tmp_path).returncode == 0
    assert manifest_bytes(tmp_path / "runs" / "run" / "dataset") == manifest_bytes(tmp_path / "whole" / "dataset")


def test_workers_end_with_their_parent(process: subprocess.Popen[str]) -> None:
    workers = workers_of(process.pid)
    assert workers
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/stat").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists() and b"forkserver" in cmdline(pid)]


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_stopped_worker_is_named(process: subprocess.Popen[str]) -> None:
    workers = workers_of(process.pid)
    for pid in workers:  # all, since another would compute in vain
        os.kill(pid, signal.SIGSTOP)
    time.sleep(6)
    os.kill(process.pid, signal.SIGINT)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    _, text = process.communicate(timeout=60)
    for pid in workers:
        assert f"worker {pid} is stopped" in text
