"""Atari 2600 games on ale-py's own vector environment."""

import re
from dataclasses import asdict, astuple
from typing import Any

from gymnasium.vector import VectorEnv

from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.core.fields import Fraction, NonNegative, Positive, validated_dataclass
from rldistill.core.spec import EnvConfig, FramePipeline


@validated_dataclass
class AtariSettings:
    """Settings of ale-py's vector environment; the first six are, in this order, those of a `FramePipeline`."""

    img_height: Positive = 84
    img_width: Positive = 84
    stack_num: Positive = 4
    frameskip: Positive = 4
    maxpool: bool = True
    grayscale: bool = True
    noop_max: NonNegative = 30
    use_fire_reset: bool = True
    repeat_action_probability: Fraction = 0.25
    full_action_space: bool = False
    episodic_life: bool = False
    reward_clipping: bool = False
    max_num_frames_per_episode: Positive = 108_000


ATARI_DEFAULTS: dict[str, Any] = asdict(AtariSettings())


def register_atari() -> None:
    """Register `Pong-v4` and similar ids, which run one emulator at a time, without a banner for each."""
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


def is_atari(env_id: str) -> bool:
    """Return True if ale-py's vector environment runs `env_id`: every `ALE/Game-v5`."""
    return env_id.startswith("ALE/")


def preprocessed_id(env_id: str) -> str | None:
    """Return `ALE/Pong-v5` for `PongNoFrameskip-v4`, the bare screen of the same game, and None for other ids."""
    match = re.fullmatch(r"(\w+)NoFrameskip-v4", env_id)
    return f"ALE/{match[1]}-v5" if match else None


def preprocessing(frames: FramePipeline) -> dict[str, Any]:
    """Return the keyword arguments of ale-py's vector environment for `frames`, without sticky actions."""
    return dict(zip(ATARI_DEFAULTS, astuple(frames)[:6], strict=False)) | {"repeat_action_probability": 0.0}


def frame_pipeline(kwargs: dict[str, Any]) -> FramePipeline:
    """Return the frame pipeline of ale-py's vector environment with these keyword arguments."""
    return FramePipeline(*astuple(AtariSettings(**kwargs))[:6])


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
    if config.worlds:
        raise ConfigError(
            f"env.worlds: {config.id} runs on ale-py, whose games do not change. Use another environment."
        )
    try:
        settings = AtariSettings(**config.kwargs)
    except ConfigError as error:  # the emulator would accept some invalid settings without an error
        raise ConfigError(f"env.kwargs{str(error).removeprefix(AtariSettings.__name__)}") from None
    return AtariVectorEnv(rom_name(config.id), num_envs, num_threads=num_threads, **asdict(settings))
