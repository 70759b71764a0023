"""Scripts that collect and evaluate with several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rldistill

pytestmark = pytest.mark.slow
SCRIPT = """
from pathlib import Path
from rldistill import CollectConfig, EnvConfig, EvaluateConfig, Execution, Mlp, collect, evaluate, spec_from_env

teacher = Mlp((8,)).build(spec_from_env(EnvConfig("CartPole-v1"))).eval()
"""
CALLS = {
    "execution.workers": (
        'collect(EnvConfig("CartPole-v1"), teacher, CollectConfig(400, epsilon=0.5), Path("data"), '
        "execution=Execution(workers=2))"
    ),
    "evaluate.env_workers": (
        'evaluate(EnvConfig("CartPole-v1"), {"teacher": teacher}, EvaluateConfig(3, env_workers=2, videos=False))'
    ),
}


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SCRIPT + script)
    path = str(Path(rldistill.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("key", [*CALLS])
def test_script_without_a_main_guard_gets_a_hint(key: str, tmp_path: Path) -> None:
    result = run(f"{CALLS[key]}\n", tmp_path)
    assert result.returncode != 0
    assert f"ConfigError: {key}: the workers import this script again" in result.stderr
    assert "--resume" not in result.stderr


def test_script_with_a_main_guard_runs(tmp_path: Path) -> None:
    result = run("\n    ".join(['if __name__ == "__main__":', *CALLS.values()]), tmp_path)
    assert result.returncode == 0, result.stderr
    assert "import this script again" not in result.stderr
    assert "--resume" not in result.stderr
