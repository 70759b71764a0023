"""Provenance of artifacts: versions, seed, command and machine."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("rldistill", "torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "pyarrow")


def provenance(seed: int) -> dict[str, Any]:
    """Return the versions, the seed, the command and the machine of a result."""
    return {
        "seed": seed,
        "versions": {"python": platform.python_version(), **_versions()},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": {"system": platform.system(), "cpu": platform.machine(), "cores": os.cpu_count()},
    }


@cache
def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
