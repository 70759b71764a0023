"""Provenance of artifacts: versions, seed, commit and machine."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from rldistill.io.atomic import _versions

PACKAGES = ("rldistill", "torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "pyarrow")


def provenance(seed: int) -> dict[str, Any]:
    """What a result depends on besides its config: versions, seed, command, machine."""
    return {
        "seed": seed,
        "versions": {"python": platform.python_version(), **_versions()},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": {"system": platform.system(), "cpu": platform.machine(), "cores": os.cpu_count()},
    }
