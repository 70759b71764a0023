from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest

AXE_VERSION = "4.14.1"


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the source of axe-core, which npm installs."""
    if not (npm := shutil.which("npm")):
        pytest.skip("there is no npm here, which installs axe-core")
    folder = tmp_path_factory.mktemp("npm")
    command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", f"axe-core@{AXE_VERSION}"]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("npm cannot install axe-core here")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


def entry(kind: str, returns: list[list[float]], normalized: float | None, **changes: Any) -> dict[str, Any]:
    values = [value for run in returns for value in run]
    mean, score = sum(values) / len(values), None
    if normalized is not None:
        score = {"value": normalized, "ci95": [normalized - 0.1, normalized + 0.1]}
    return {
        "kind": kind,
        "runs": [{"training_seed": seed, "returns": run} for seed, run in enumerate(returns)],
        "distinct_episodes": len(returns[0]),
        "distinct_runs": len(returns),
        "mean": {"value": mean, "ci95": [min(values), max(values)]},
        "median": {"value": mean, "ci95": None},
        "iqm": {"value": mean, "ci95": None},
        "optimality_gap": None,
        "probability_of_improvement": None,
        "profile": {"share": [1.0], "low": [1.0], "high": [1.0]},
        "success_rate": None,
        "normalized": score,
        "discounted_mean": 1.0,
        "agreement": 0.875 if kind == "student" else None,
        "action_rmse": None,
        "parameters": 0 if kind == "random" else 1_000,
        "bytes": 0 if kind == "random" else 4_000,
        "macs": 0 if kind == "random" else 900,
        "activations": 0,
        "batch_latency_us": None,
        "non_inferiority": None,
        "fidelity": None,
        "latency_us": None if kind == "random" else {"p50": 20.0, "p99": 31.0},
        "env_steps": 5_000 if kind == "student" else 0,
    } | changes


@pytest.fixture
def evaluation() -> dict[str, Any]:
    return {
        "env": "CartPole-v1",
        "env_kwargs": {},
        "episodes": 2,
        "seeds": [0, 1],
        "versions": {"rldistill": "0.1.0"},
        "profile_at": [0.0],
        "warnings": {},
        "efficiency": {},
        "robustness": None,
        "policies": {
            "teacher": entry("teacher", [[500, 480]], 1.0),
            "small-mlp": entry("student", [[450, 400], [480, 470]], 0.9, parameters=250),
            "wide": entry("student", [[300, 310], [320, 290]], 0.6, parameters=4_000),
            "random": entry("random", [[20, 22]], 0.0),
        },
    }
