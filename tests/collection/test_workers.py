"""Worker processes that are killed, stopped, or left by their parent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from pathlib import Path
from rldistill.collection import stream
from rldistill.cli.main import main
if __name__ == "__main__":
    main()
"""
RUN = """
env: {id: CartPole-v1}
teacher: tests_teacher:make
verify: false
collect: {steps: 400000, num_streams: 4, workers: 2, block_steps: 64}
students: {mlp: {type: mlp, hidden: [8]}}
"""
TEACHER = """
from rldistill.students import Mlp
def make(spec):
    return Mlp((8,)).build(spec)
"""


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    command = {int(task): Path(f"/proc/{task}/cmdline").read_text() for task in tasks}
    return [task for task, text in command.items() if "spawn_main" in text]


@pytest.fixture
def process(tmp_path: Path) -> subprocess.Popen[str]:
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "tests_teacher.py").write_text(TEACHER)
    command = [sys.executable, "-c", PROGRAM, "collect", "run.yaml"]
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not [*tmp_path.glob("runs/run/dataset/blocks/*.parquet")] and time.monotonic() < deadline:
        assert started.poll() is None, started.communicate()
        time.sleep(0.1)
    return started


def test_killed_worker_ends_in_one_line(process: subprocess.Popen[str]) -> None:
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(r"^error: collect\.workers: a worker was killed, [^\n]* continue with --resume", text, re.M)
    assert "Traceback" not in text


def test_workers_end_with_their_parent(process: subprocess.Popen[str]) -> None:
    workers = children(process.pid)
    assert workers
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/stat").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    running = [pid for pid in workers if Path(f"/proc/{pid}/cmdline").exists() and b"spawn" in cmdline(pid)]
    assert not running


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_stopped_worker_is_named(process: subprocess.Popen[str]) -> None:
    pid = children(process.pid)[0]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(6)
    os.kill(process.pid, signal.SIGINT)
    os.kill(pid, signal.SIGCONT)
    _, text = process.communicate(timeout=60)
    assert f"worker {pid} is stopped" in text
