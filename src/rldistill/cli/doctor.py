"""`rldistill doctor`: facts about this machine, and the check of an environment."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from rldistill.cli.errors import EXIT_FALSE, command_group
from rldistill.cli.options import ENV_HELP, AsJson, EnvKwargs, Seed, parse_env, print_result, show

doctor = command_group(invoke_without_command=True, no_args_is_help=False)
PACKAGES = ("rldistill", "torch", "gymnasium", "ale-py", "stable-baselines3", "sb3-contrib", "numpy", "pyarrow")
EXTRAS: dict[str, tuple[str, ...]] = {
    "mujoco": ("mujoco",),
    "robots": ("metaworld",),
    "box2d": ("Box2D",),
    "driving": ("highway_env",),
    "hub": ("huggingface_hub",),
    "keras": ("keras",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "minari": ("minari",),
    "mlflow": ("mlflow",),
    "multiagent": ("pettingzoo", "mpe2"),
    "opencv": ("cv2",),
    "ray": ("ray",),
    "resources": ("gym_anm", "JSSEnv"),
    "wandb": ("wandb",),
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


@doctor.callback()
def print_facts(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Print versions, cores, GPU, ROMs and extras of this machine; or check an environment."""
    if ctx.invoked_subcommand is None:
        show(examine(), as_json)


@doctor.command()
def env(
    env: Annotated[str, typer.Argument(metavar="ENV", help=ENV_HELP, show_default=False)],
    env_kwarg: EnvKwargs = None,
    steps: Annotated[int, typer.Option(min=2, help="Number of steps to play.")] = 300,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """List everything that will not work with an environment, or is suspicious, with its remedy."""
    import rldistill

    result = rldistill.check_env(parse_env(env, env_kwarg), steps, seed)
    print_result(result, as_json)
    if not result.ok:
        raise typer.Exit(EXIT_FALSE)
