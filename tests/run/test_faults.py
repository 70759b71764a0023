"""Failures of the file system end in one line, and `--resume` goes on to the same results."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rldistill.data.manifest import Manifest
from rldistill.policies.network import NetworkPolicy
from rldistill.students.storage import save_policy

from .. import commands

pytestmark = pytest.mark.slow
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_sample_of_the_benchmark() -> None:
    command = [sys.executable, str(BENCHMARK), "--faults", "1", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^(\w+) +(\d of \d)", done.stdout, re.MULTILINE) == [
        (kind, "1 of 1") for kind in ("ENOSPC", "EIO", "EMFILE", "EFBIG")
    ]


def test_too_many_open_files_with_workers(tmp_path: Path, teacher: NetworkPolicy) -> None:
    save_policy(teacher, tmp_path / "teacher", {})
    document = {"env": {"id": "CartPole-v1"}, "teacher": str(tmp_path / "teacher"), "out": str(tmp_path / "out")}
    document |= {
        "students": {"small": "ridge"},
        "collect": {"steps": 96, "block_steps": 16, "num_streams": 3},
        "execution": {"workers": 3},
    }
    (tmp_path / "run.json").write_text(json.dumps(document))
    command = ("collect", str(tmp_path / "run.json"), "--resume")

    for limit in (10, 20, 26):  # of the command, of the process from which workers are forked, and of workers
        limit_files = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
        failed = commands.run(*command, before=limit_files)
        assert failed.returncode == 2, failed.stderr
        assert "Traceback" not in failed.stderr
        assert re.search(r"error: .*Raise `ulimit -n`, or use fewer workers.*--resume", failed.stderr.splitlines()[-1])
    assert commands.run(*command).returncode == 0
    whole = Manifest.read(tmp_path / "out" / "dataset")
    document |= {"out": str(tmp_path / "alone"), "execution": {"workers": 1}}
    (tmp_path / "run.json").write_text(json.dumps(document))
    assert commands.run(*command).returncode == 0
    assert [block.sha256 for block in Manifest.read(tmp_path / "alone" / "dataset").blocks] == [
        block.sha256 for block in whole.blocks
    ]
