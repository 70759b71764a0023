"""Atari 2600 games on ale-py's own vector environment."""

from __future__ import annotations

import re
from dataclasses import astuple
from typing import Any

from gymnasium.vector import VectorEnv

from rldistill.core.errors import ConfigError, did_you_mean, short_repr
from rldistill.core.spec import EnvConfig, FramePipeline

FRAME_SETTINGS = ("img_height", "img_width", "stack_num", "frameskip", "maxpool", "grayscale")
"""Names of ale-py for the fields of a `FramePipeline`, in their order."""
ATARI_DEFAULTS: dict[str, Any] = {
    "img_height": 84,
    "img_width": 84,
    "stack_num": 4,
    "frameskip": 4,
    "maxpool": True,
    "grayscale": True,
    "noop_max": 30,
    "use_fire_reset": True,
    "repeat_action_probability": 0.25,
    "full_action_space": False,
    "episodic_life": False,
    "reward_clipping": False,
    "max_num_frames_per_episode": 108_000,
}


def register_atari() -> None:
    """Register `Pong-v4` and similar ids, which run one emulator at a time, without a banner for each."""
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def is_atari(env_id: str) -> bool:
    """Return True if ale-py's vector environment runs `env_id`: every `ALE/Game-v5`."""
    return env_id.startswith("ALE/")


def is_deterministic(config: EnvConfig) -> bool:
    """Return True if equal actions lead to equal episodes, except for the number of no-ops at the start."""
    return is_atari(config.id) and {**ATARI_DEFAULTS, **config.kwargs}["repeat_action_probability"] == 0


def preprocessed_id(env_id: str) -> str | None:
    """Return `ALE/Pong-v5` for `PongNoFrameskip-v4`, the bare screen of the same game, and None for other ids."""
    match = re.fullmatch(r"(\w+)NoFrameskip-v4", env_id)
    return f"ALE/{match[1]}-v5" if match else None


def preprocessing(frames: FramePipeline) -> dict[str, Any]:
    """Return the keyword arguments of ale-py's vector environment for `frames`, without sticky actions."""
    return dict(zip(FRAME_SETTINGS, astuple(frames), strict=False)) | {"repeat_action_probability": 0.0}


def frame_pipeline(kwargs: dict[str, Any]) -> FramePipeline:
    """Return the frame pipeline of ale-py's vector environment with these keyword arguments."""
    return FramePipeline(*({**ATARI_DEFAULTS, **kwargs}[name] for name in FRAME_SETTINGS))


def rom_name(env_id: str) -> str:
    """Return the name of the ROM: `ms_pacman` for `ALE/MsPacman-v5`."""
    from ale_py import roms

    match = re.fullmatch(r"ALE/(\w+)-v5", env_id)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", match[1]).lower() if match else ""
    rom_ids = roms.get_all_rom_ids()
    if name not in rom_ids:
        games = [f"ALE/{''.join(word.capitalize() for word in rom.split('_'))}-v5" for rom in rom_ids]
        raise ConfigError(f"env.id: there is no Atari game {env_id!r}.{did_you_mean(env_id, games)}")
    return name


def make_atari(config: EnvConfig, num_envs: int, num_threads: int) -> VectorEnv[Any, Any, Any]:
    """Return `num_envs` emulators that ale-py steps with threads of its own; raise ConfigError for invalid settings."""
    from ale_py.vector_env import AtariVectorEnv

    if config.wrappers or config.views:
        game = config.id.removeprefix("ALE/").removesuffix("-v5")
        raise ConfigError(
            f"env.wrappers: {config.id} runs on ale-py's vector environment, which accepts no wrappers and no views. "
            f"Use env.kwargs, or {game}NoFrameskip-v4 with AtariPreprocessing."
        )
    for name, value in config.kwargs.items():
        _require_valid(config.id, name, value)
    kwargs = {**ATARI_DEFAULTS, **config.kwargs}
    return AtariVectorEnv(rom_name(config.id), num_envs, num_threads=num_threads, **kwargs)


def _require_valid(env_id: str, name: str, value: Any) -> None:
    """Raise ConfigError for an unknown setting, or an invalid value that the emulator would accept without an error."""
    if name not in ATARI_DEFAULTS:
        hint = did_you_mean(name, ATARI_DEFAULTS)
        raise ConfigError(
            f"env.kwargs.{name}: {env_id} has no such setting.{hint} Use one of {', '.join(ATARI_DEFAULTS)}."
        )
    default = ATARI_DEFAULTS[name]
    minimum = 0 if name == "noop_max" else 1
    if isinstance(default, bool):
        valid, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        valid, expected = type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"
    else:
        valid, expected = type(value) is int and value >= minimum, f"an integer of at least {minimum}"
    if not valid:
        raise ConfigError(f"env.kwargs.{name}: expected {expected}, found {short_repr(value)}.")
