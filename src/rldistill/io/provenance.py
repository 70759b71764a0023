"""Provenance of artifacts: versions, seed, command and machine."""

import os
import platform
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("rldistill", "torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "pyarrow")


def provenance(seed: int) -> dict[str, Any]:
    """Return the versions, the seed, the command and the machine of a result."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "seed": seed,
        "versions": versions,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": {"system": platform.system(), "cpu": platform.machine(), "cores": os.cpu_count()},
    }
