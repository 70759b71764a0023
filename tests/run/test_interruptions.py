"""A full disk and a stop from outside: one line of output, no loss, and `--resume` continues."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import save_policy

from .. import commands
from ..conftest import manifest_bytes

pytestmark = pytest.mark.slow

CLI = [sys.executable, "-m", "rldistill"]
ON_SMALL_DISK = ["unshare", "--user", "--mount", "--map-root-user", "sh", "-c"]


def write_run(tmp_path: Path, teacher: NetworkPolicy, out: Path) -> Path:
    save_policy(teacher, tmp_path / "teacher", {})
    document = {
        "env": {"id": "CartPole-v1"},
        "teacher": str(tmp_path / "teacher"),
        "collect": {"steps": 20_000, "block_steps": 50, "epsilon": 0.2},
        "out": str(out),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def can_mount_small_disk() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*ON_SMALL_DISK, "mount -t tmpfs none /mnt"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount_small_disk(), reason="a file system of its own cannot be mounted here")
def test_full_disk_is_one_line_and_complete_blocks_remain(tmp_path: Path, teacher: NetworkPolicy) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run = write_run(tmp_path, teacher, disk / "run")
    collect = " ".join([*CLI, "collect", str(run), "--quiet"])
    # Copy the content of the small disk to a place with room, where the collection continues.
    script = (
        f"mount -t tmpfs -o size=300k none {disk}; {collect}; echo $? > {tmp_path}/code; cp -r {disk}/run {tmp_path}"
    )
    done = subprocess.run([*ON_SMALL_DISK, script], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "code").read_text() == "2\n"
    assert done.stderr.startswith("error: the disk is full"), done.stderr
    assert done.stderr.count("\n") == 1
    blocks = list((tmp_path / "run" / "dataset" / "blocks").iterdir())
    assert blocks
    assert not [path for path in blocks if ".tmp." in path.name]
    arguments = [str(run), "--resume", "--quiet"]
    for name in ("run", "whole"):
        assert commands.run("collect", *arguments, f"out={tmp_path / name}").returncode == 0
    assert manifest_bytes(tmp_path / "run" / "dataset") == manifest_bytes(tmp_path / "whole" / "dataset")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stop_is_clean(tmp_path: Path, teacher: NetworkPolicy, stop: signal.Signals, workers: int) -> None:
    run = write_run(tmp_path, teacher, tmp_path / "run")
    blocks = tmp_path / "run" / "dataset" / "blocks"
    command = [*CLI, "collect", str(run), "--quiet", f"execution.workers={workers}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and len(list(blocks.glob("round*.parquet"))) < 2:
        time.sleep(0.002)
    os.killpg(process.pid, stop) if stop == signal.SIGINT else process.send_signal(stop)  # as a terminal does
    _, output = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "stopped; continue with --resume\n")
    if workers == 1:  # others are stopped at once, as a kill would
        assert not [path for path in blocks.iterdir() if ".tmp." in path.name]
    assert commands.run("collect", str(run), "--resume", "--quiet").returncode == 0
    checked = commands.run("dataset", "check", str(tmp_path / "run"))
    assert "every block is whole" in checked.stdout
