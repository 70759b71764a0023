"""Videos of each policy's best, median and worst episode, and of its teacher in the same episodes."""

import dataclasses
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import USER_ERRORS, ConfigError
from rldistill.core.spec import EnvConfig
from rldistill.envs.atari import is_atari, make_atari
from rldistill.envs.make import make_env
from rldistill.envs.seeding import episode_seed
from rldistill.evaluation.episodes import TEST, Episodes
from rldistill.io.atomic import write_atomic
from rldistill.io.progress import SILENT, Progress

MAX_FRAMES = 1_200
MAX_VIDEOS_S = 600
"""Time for all videos: without a graphics card, a renderer may need a second for each frame."""
LABELS = ("best", "median", "worst")


def notable_episodes(returns: Sequence[float]) -> dict[str, int]:
    """Return the numbers of the best, the (lower) median and the worst episode; the first of equal ones."""
    ordered = sorted(returns)
    values = (ordered[-1], ordered[(len(ordered) - 1) // 2], ordered[0])
    return {label: list(returns).index(value) for label, value in zip(LABELS, values, strict=True)}


def record_videos(
    env: EnvConfig,
    seed: int,
    episodes: Mapping[str, Episodes],
    students: Collection[str],
    folder: Path,
    progress: Progress = SILENT,
) -> None:
    """Write `<policy>-<label>.mp4` and, for `students`, `<policy>-<label>-teacher.mp4`; `teacher` has that name.

    A failure of the renderer or the codec, or one that takes too long, ends in a warning, since the evaluation is
    complete without videos. `progress` receives the number of frames.
    """
    files: dict[tuple[str, int], list[Path]] = {}
    for name, own in episodes.items():
        for label, number in notable_episodes(own.returns.tolist()).items():
            files.setdefault((name, number), []).append(folder / f"{name}-{label}.mp4")
            if name in students:
                files.setdefault(("teacher", number), []).append(folder / f"{name}-{label}-teacher.mp4")
    total = sum(1 + min(len(episodes[name].actions[number]), MAX_FRAMES) for name, number in files)
    frames, deadline = count(1), time.monotonic() + MAX_VIDEOS_S

    def after_frame() -> None:
        progress.update(next(frames), total)
        if time.monotonic() > deadline:
            raise RuntimeError(f"the rest takes over {MAX_VIDEOS_S} s to draw")

    try:
        first_picture(env)
        for (name, number), (path, *copies) in files.items():
            record_video(env, seed, number, episodes[name].actions[number], path, after_frame)
            for copy in copies:
                shutil.copyfile(path, copy)
    except USER_ERRORS as error:  # a renderer may raise any class, such as MuJoCo's FatalError without a display
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        warnings.warn(f"no videos: {reason}", stacklevel=2)


def remove_videos(folder: Path) -> None:
    """Remove the files of `record_videos`, and the folder if nothing else is in it."""
    for label in LABELS:
        for file in (*folder.glob(f"*-{label}.mp4"), *folder.glob(f"*-{label}-teacher.mp4")):
            file.unlink()
    with suppress(OSError):
        folder.rmdir()


def has_pictures(env_config: EnvConfig) -> bool:
    """Return True if the environment has the render mode rgb_array."""
    if is_atari(env_config.id):
        return True
    env = make_env(env_config.view_of("student"))
    modes: Any = env.metadata.get("render_modes") or ()
    env.close()
    if "rgb_array" not in modes:
        return False
    try:
        make_env(env_config.view_of("student"), render_mode="rgb_array").close()
    except ConfigError:  # a user's function without the argument render_mode
        return False
    return True


def first_picture(env_config: EnvConfig) -> NDArray[np.uint8]:
    """Return the picture of the first step; raise any error of the renderer, and RuntimeError without one."""
    if not has_pictures(env_config):
        raise RuntimeError(f"{env_config.id} has no render mode rgb_array")
    return next(_frames(env_config, 0, []))


def record_video(
    env_config: EnvConfig,
    seed: int,
    episode: int,
    actions: NDArray[Any],
    path: Path,
    after_frame: Callable[[], None] = lambda: None,
) -> None:
    """Replay an episode from its seed and actions, in color, and write it as an H.264 file."""
    import imageio.v2 as imageio

    frames = _frames(env_config, episode_seed(seed, "evaluate", TEST, 0, 0, episode), actions[:MAX_FRAMES])

    def write(temporary: Path) -> None:
        # "veryfast" takes two thirds of the CPU time for files of the same size.
        options = ["-f", "mp4", "-crf", "30", "-preset", "veryfast", "-movflags", "+faststart"]
        with imageio.get_writer(
            temporary, format="FFMPEG", fps=30, codec="libx264", macro_block_size=2, ffmpeg_params=options
        ) as writer:
            for frame in frames:
                writer.append_data(frame)  # type: ignore[attr-defined]
                after_frame()

    write_atomic(path, write)


def _frames(env_config: EnvConfig, seed: int, actions: Iterable[Any]) -> Iterator[NDArray[np.uint8]]:
    if is_atari(env_config.id):
        picture = {"img_height": 210, "img_width": 160, "grayscale": False, "stack_num": 1}
        colored = dataclasses.replace(env_config, kwargs={**env_config.kwargs, **picture})
        with closing(make_atari(colored, 1, 1)) as vector:
            obs, _ = vector.reset(seed=np.array([seed]))  # type: ignore[arg-type]
            yield obs[0, 0].copy()
            for action in actions:
                obs, *_ = vector.step(np.array([action], np.int64))
                yield obs[0, 0].copy()
        return
    # Without a screen, SDL would write its complaints over the progress bars.
    for variable in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
        os.environ.setdefault(variable, "dummy")
    with _mujoco_without_screen(), closing(make_env(env_config.view_of("student"), render_mode="rgb_array")) as env:
        env.reset(seed=seed)
        yield _picture(env.render())
        for action in actions:  # which are kept as small integers
            action = action.astype(env.action_space.dtype)
            env.step(action.reshape(env.action_space.shape) if action.shape else action)
            yield _picture(env.render())


@contextmanager
def _mujoco_without_screen() -> Iterator[None]:
    """Let MuJoCo draw by EGL where there is no screen; its default, GLFW, ends the whole process there.

    The variable is not kept, since `import mujoco` in a later process fails with it where EGL is missing.
    """
    has_screen = sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if has_screen or "MUJOCO_GL" in os.environ:
        yield
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]


def _picture(frame: Any) -> NDArray[np.uint8]:
    """Return a rendered frame with even sides, as the codec requires; raise RuntimeError if it is no picture."""
    array = np.asarray(frame)
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not is_picture or array.dtype != np.uint8 or min(array.shape[:2]) < 2:
        found = f"{array.dtype} of shape {array.shape}" if array.ndim else f"a {type(frame).__name__}"
        raise RuntimeError(f"render returned {found}, expected uint8 of shape (height, width, 3)")
    height, width = array.shape[:2]
    return array[: height // 2 * 2, : width // 2 * 2]
