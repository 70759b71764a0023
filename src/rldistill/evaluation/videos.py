"""Films of each policy's best, median and worst episode, a student's beside its teacher's of the same seed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError
from rldistill.envs.atari import is_atari, make_atari
from rldistill.envs.config import EnvConfig
from rldistill.envs.make import make_env
from rldistill.envs.seeding import episode_seed
from rldistill.envs.vector import reshape_action
from rldistill.evaluation.episodes import Episodes
from rldistill.io.atomic import write_atomic

VIDEO_FRAMES = 1_200
LABELS = ("best", "median", "worst")


def notable(returns: Sequence[float]) -> dict[str, int]:
    """The numbers of the best, the median and the worst episode; of an even number, the lower of the two in the middle.

    Of several that return the same, the first.
    """
    order = sorted(range(len(returns)), key=lambda number: returns[number])
    middle = returns[order[(len(order) - 1) // 2]]
    return {
        label: list(returns).index(value)
        for label, value in zip(LABELS, (max(returns), middle, min(returns)), strict=True)
    }


def film_all(
    env: EnvConfig, seed: int, played: Mapping[str, Episodes], students: Collection[str], folder: Path
) -> None:
    """Write `<policy>-<label>.mp4` and, for students, `<policy>-<label>-teacher.mp4` into `folder`.

    One of those who `played` is the `teacher`. What cannot be filmed, for want of pictures or of a codec, is left out
    with a warning.
    """
    if not draws_itself(env):
        warnings.warn(f"no videos: {env.id} has no render mode rgb_array", stacklevel=2)
        return
    try:
        filmed: dict[tuple[str, int], Path] = {}
        for name, episodes in played.items():
            for label, number in notable(episodes.returns.tolist()).items():
                asked = {name: f"{name}-{label}.mp4"} | (
                    {"teacher": f"{name}-{label}-teacher.mp4"} if name in students else {}
                )
                for who, file in asked.items():
                    if (who, number) in filmed:
                        shutil.copyfile(filmed[who, number], folder / file)
                        continue
                    film(env, seed, number, played[who].actions[number], folder / file)
                    filmed[who, number] = folder / file
    except (OSError, RuntimeError, ImportError) as error:
        # All else of an evaluation is written by now, and is worth as much without its films.
        said = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(f"no more videos: an episode cannot be written as H.264 ({said[0]})", stacklevel=2)


def remove_films(folder: Path) -> None:
    """Remove what `film_all` wrote, and nothing else."""
    for label in LABELS:
        for file in (*folder.glob(f"*-{label}.mp4"), *folder.glob(f"*-{label}-teacher.mp4")):
            file.unlink()
    with suppress(OSError):  # there is none, or something else is in it
        folder.rmdir()


def draws_itself(env_config: EnvConfig) -> bool:
    """Whether there are pictures to film."""
    if is_atari(env_config.id):
        return True
    env = make_env(env_config.view_of("student"))
    modes: Any = env.metadata.get("render_modes") or ()
    env.close()
    if "rgb_array" not in modes:
        return False
    try:
        make_env(env_config.view_of("student"), render_mode="rgb_array").close()
    except ConfigError:  # a function of the user's that takes no render mode
        return False
    return True


def film(env_config: EnvConfig, seed: int, episode: int, actions: list[Any], path: Path) -> None:
    """Play an episode again, from its seed and its actions, in colour, and write it as an H.264 file."""
    import imageio.v2 as imageio

    frames = (_film_atari if is_atari(env_config.id) else _film_any)(
        env_config, episode_seed(seed, "evaluate", 0, 0, 0, episode), actions[:VIDEO_FRAMES]
    )

    def write(temporary: Path) -> None:
        with imageio.get_writer(
            temporary,
            format="FFMPEG",
            fps=30,
            codec="libx264",
            macro_block_size=2,
            ffmpeg_params=["-f", "mp4", "-crf", "30", "-movflags", "+faststart"],
        ) as writer:
            for frame in frames:
                writer.append_data(frame)  # type: ignore[attr-defined]

    write_atomic(path, write)


def _film_atari(env_config: EnvConfig, seed: int, actions: list[Any]) -> Iterator[NDArray[np.uint8]]:
    picture = {"img_height": 210, "img_width": 160, "grayscale": False, "stack_num": 1}
    vector = make_atari(dataclasses.replace(env_config, kwargs={**env_config.kwargs, **picture}), 1, 1)
    obs, _ = vector.reset(seed=np.array([seed]))  # type: ignore[arg-type]
    yield obs[0, 0].copy()
    for action in actions:
        obs, *_ = vector.step(np.array([action]))
        yield obs[0, 0].copy()
    vector.close()


def _film_any(env_config: EnvConfig, seed: int, actions: list[Any]) -> Iterator[NDArray[np.uint8]]:
    # Pictures alone are wanted; SDL, looking for a screen and for sound, would write over the progress bars.
    for variable in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        os.environ.setdefault(variable, "dummy")
    env = make_env(env_config.view_of("student"), render_mode="rgb_array")
    env.reset(seed=seed)
    yield np.asarray(env.render())
    for action in actions:
        env.step(reshape_action(action, env.action_space))
        yield np.asarray(env.render())
    env.close()
