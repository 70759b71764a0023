"""Atari 2600 through ale-py's own vector environment."""

from __future__ import annotations

import re
from typing import Any

from gymnasium.vector import VectorEnv

from rldistill.core.errors import ConfigError, did_you_mean, shown
from rldistill.core.spec import FramePipeline

DEFAULTS: dict[str, Any] = {
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
    """Make Gymnasium know `Pong-v4` and its like, which run one emulator at a time, without a banner for each."""
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def is_atari(env_id: str) -> bool:
    """Whether `env_id` is played by ale-py's vector environment, which is so for every `ALE/Game-v5`."""
    return env_id.startswith("ALE/")


def is_deterministic(env_id: str, kwargs: dict[str, Any]) -> bool:
    """Whether equal actions lead to equal episodes, but for the number of no-ops at their start."""
    return is_atari(env_id) and {**DEFAULTS, **kwargs}["repeat_action_probability"] == 0


def preprocessed_id(env_id: str) -> str | None:
    """`ALE/Pong-v5` of `PongNoFrameskip-v4`, which shows the bare screen of the same game; None of anything else."""
    match = re.fullmatch(r"(\w+)NoFrameskip-v4", env_id)
    return f"ALE/{match[1]}-v5" if match else None


def preprocessing(frames: FramePipeline) -> dict[str, Any]:
    """The keyword arguments with which ale-py's vector environment makes `frames` of a game without sticky actions."""
    return {
        "img_height": frames.height,
        "img_width": frames.width,
        "stack_num": frames.stack,
        "frameskip": frames.skip,
        "maxpool": frames.max_pool,
        "grayscale": frames.grayscale,
        "repeat_action_probability": 0.0,
    }


def rom_name(env_id: str) -> str:
    """`ALE/MsPacman-v5` -> `ms_pacman`."""
    from ale_py import roms

    match = re.fullmatch(r"ALE/(\w+)-v5", env_id)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", match[1]).lower() if match else ""
    known = roms.get_all_rom_ids()
    if name not in known:
        games = [f"ALE/{''.join(word.capitalize() for word in rom.split('_'))}-v5" for rom in known]
        raise ConfigError(f"env.id: there is no Atari game {env_id!r}.{did_you_mean(env_id, games)}")
    return name


def make_atari(env_id: str, num_envs: int, num_threads: int, kwargs: dict[str, Any]) -> VectorEnv[Any, Any, Any]:
    """`num_envs` emulators stepped by `num_threads` threads of ale-py's own."""
    from ale_py.vector_env import AtariVectorEnv

    unknown = sorted(set(kwargs) - set(DEFAULTS))
    if unknown:
        raise ConfigError(
            f"env.kwargs.{unknown[0]}: {env_id} has no such setting.{did_you_mean(unknown[0], DEFAULTS)} "
            f"It takes {', '.join(DEFAULTS)}."
        )
    for name, value in kwargs.items():
        _require_sound(name, value)
    return AtariVectorEnv(rom_name(env_id), num_envs, num_threads=num_threads, **{**DEFAULTS, **kwargs})


def _require_sound(name: str, value: Any) -> None:
    """Raise ConfigError for a setting that the emulator does not check."""
    default = DEFAULTS[name]
    if isinstance(default, bool):
        sound, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        sound, expected = number and 0 <= value <= 1, "a number from 0 to 1"
    else:
        least = 0 if name == "noop_max" else 1
        sound, expected = type(value) is int and value >= least, f"an integer of at least {least}"
    if not sound:
        raise ConfigError(f"env.kwargs.{name}: found {shown(value)}, expected {expected}")
