"""Jobs on Ray: the bytes of one process on a cluster of two nodes, and after a worker or a node is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rldistill
from rldistill.core.errors import MissingExtraError
from rldistill.io.execution import Execution, run_jobs

PROGRAM = Path(__file__).parent / "ray_program.py"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)")
def test_a_cluster_of_two_nodes_has_the_bytes_of_one_process(tmp_path: Path) -> None:
    variables = {
        "PYTHONPATH": str(Path(rldistill.__file__).parents[1]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # addresses of this machine alone
        "RAY_worker_niceness": "0",
    }
    command = [sys.executable, str(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3_000:]
    result = json.loads(done.stdout.splitlines()[-1])
    failure = result.pop("failing")
    assert result.pop("nodes") == 2
    names = ["serial", "ray", "ray 1", "ray 2", "stages, killed worker", "killed worker", "killed node"]
    assert result == dict.fromkeys(names, True)
    assert failure.startswith("teacher: out of order. Repair it.")


def test_without_ray_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"execution\.backend: ray needs .* pip install 'rldistill\[ray\]'"):
        [*run_jobs(max, [1], Execution("ray"))]
