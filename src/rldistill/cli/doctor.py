"""Versions, cores, GPU, ROMs and extras of this machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from importlib.util import find_spec
from typing import Any

PACKAGES = ("rldistill", "torch", "gymnasium", "ale-py", "stable-baselines3", "sb3-contrib", "numpy", "pyarrow")
EXTRAS: dict[str, tuple[str, ...]] = {
    "mujoco": ("mujoco",),
    "box2d": ("Box2D",),
    "driving": ("highway_env",),
    "keras": ("keras",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "minari": ("minari",),
}
"""Modules that each extra installs."""


def examine() -> dict[str, Any]:
    """Return the facts of a bug report as plain data."""
    import torch
    from ale_py import roms

    versions, extras, games = {}, {}, roms.get_all_rom_ids()
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    for extra, modules in EXTRAS.items():
        extras[extra] = "present" if all(map(find_spec, modules)) else f"missing: pip install 'rldistill[{extra}]'"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": versions,
        "roms": f"{len(games)} games, {'with' if 'pong' in games else 'without'} Pong",
        "extras": extras,
    }
