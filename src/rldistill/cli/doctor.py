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
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "gpu": _gpu(),
        "versions": {package: _version(package) for package in PACKAGES},
        "roms": _roms(),
        "extras": {extra: _extra(extra, modules) for extra, modules in EXTRAS.items()},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _roms() -> str:
    from ale_py import roms

    games = roms.get_all_rom_ids()
    return f"{len(games)} games, {'with' if 'pong' in games else 'without'} Pong"


def _extra(extra: str, modules: tuple[str, ...]) -> str:
    if all(find_spec(module) for module in modules):
        return "present"
    return f"missing: pip install 'rldistill[{extra}]'"
