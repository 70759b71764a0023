from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rldistill.io.atomic import open_stage, write_atomic


def test_temporary_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / "blocks").mkdir()
    stale, live = tmp_path / "blocks" / f".{process.pid}.tmp.a.parquet", tmp_path / f".{os.getpid()}.tmp.policy.json"
    for path in (stale, live, tmp_path / "policy.json"):
        path.write_text("")
    assert open_stage(tmp_path, tmp_path / "policy.json", "resume")
    assert (stale.exists(), live.exists()) == (False, True)


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    """Safetensors makes files of its own with 0600."""
    (tmp_path / "plain").touch()

    def write(path: Path) -> None:
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    write_atomic(tmp_path / "private", write)
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode
