"""Recorded episodes, and failures of renderers and codecs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from imageio_ffmpeg import count_frames_and_secs

from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation import videos
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import play
from rldistill.evaluation.evaluate import evaluate
from rldistill.evaluation.videos import notable_episodes, record_videos
from rldistill.policies.network import NetworkPolicy
from rldistill.reporting import write_report
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE


def test_the_notable_episodes_of_a_few_returns() -> None:
    # In order: 1 (number 2), 3 (0), 5 (3), 7 (1): the lower of the middle two is 3.
    assert notable_episodes([3, 7, 1, 5]) == {"best": 1, "median": 0, "worst": 2}
    assert notable_episodes([4, 9, 9, 4, 6]) == {"best": 1, "median": 4, "worst": 0}
    assert notable_episodes([2]) == {"best": 0, "median": 0, "worst": 0}


def test_a_student_is_filmed_beside_its_teacher_in_the_same_episodes(tmp_path: Path, teacher: NetworkPolicy) -> None:
    short = EnvConfig("CartPole-v1", {"max_episode_steps": 25})
    taught, random = play(short, teacher, 3), play(short, None, 3)
    record_videos(short, 0, {"teacher": taught, "own": random, "twin": random}, ("own", "twin"), tmp_path)
    labels = ("best", "median", "worst")
    names = {f"{who}-{label}{beside}.mp4" for who in ("own", "twin") for label in labels for beside in ("", "-teacher")}
    assert {path.name for path in tmp_path.iterdir()} == names | {f"teacher-{label}.mp4" for label in labels}
    for label, number in notable_episodes(taught.returns.tolist()).items():
        assert count_frames_and_secs(tmp_path / f"teacher-{label}.mp4")[0] == taught.lengths[number] + 1
    for label, number in notable_episodes(random.returns.tolist()).items():
        own, beside = tmp_path / f"own-{label}.mp4", tmp_path / f"own-{label}-teacher.mp4"
        assert count_frames_and_secs(own)[0] == random.lengths[number] + 1
        assert count_frames_and_secs(beside)[0] == taught.lengths[number] + 1
        assert digest(beside) == digest(tmp_path / f"twin-{label}-teacher.mp4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        EnvConfig("ALE/Pong-v5", {"max_num_frames_per_episode": 120}),
        EnvConfig("Acrobot-v1", {"max_episode_steps": 9}),
        EnvConfig("LunarLander-v3", {"max_episode_steps": 9, "continuous": True}),
    ],
    ids=str,
)
def test_an_episode_is_filmed_with_actions_as_they_are_kept(env: EnvConfig, tmp_path: Path) -> None:
    played = play(env, None, 1)
    videos.record_video(env, 0, 0, played.actions[0], tmp_path / "film.mp4")
    assert count_frames_and_secs(tmp_path / "film.mp4")[0] == played.lengths[0] + 1


def test_without_students_the_teacher_is_filmed(tmp_path: Path) -> None:
    record_videos(CARTPOLE, 0, {"teacher": play(CARTPOLE, None, 1)}, (), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"teacher-{label}.mp4" for label in ("best", "median", "worst")
    }


def test_a_codec_that_is_not_there_costs_the_films_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_ffmpeg(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("No ffmpeg exe could be found.\nInstall it.")

    monkeypatch.setattr(imageio, "get_writer", without_ffmpeg)
    with pytest.warns(UserWarning, match=r"no videos: No ffmpeg exe could be found"):
        record_videos(CARTPOLE, 0, {"teacher": play(CARTPOLE, None, 1)}, (), tmp_path)
    assert not list(tmp_path.iterdir())


def test_any_failure_of_a_renderer_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo raises a class of its own without a display; the evaluation is complete all the same."""

    class FatalError(Exception):
        pass

    def no_display(self: Any) -> None:
        raise FatalError("gladLoadGL error\nmore")

    monkeypatch.setattr(CartPoleEnv, "render", no_display)
    teacher = FunctionPolicy(lambda obs: 1, spec_from_env(CARTPOLE))
    with pytest.warns(UserWarning, match="no videos: gladLoadGL error$") as caught:
        found = evaluate(CARTPOLE, {"teacher": teacher, "same": teacher}, EvaluateConfig(2), tmp_path)
    assert sum("no videos" in str(warning.message) for warning in caught) == 1
    assert write_report(tmp_path).exists()
    assert found.episodes == 2


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "egl"), ({"DISPLAY": ":0"}, None), ({"MUJOCO_GL": "osmesa"}, "osmesa")],
)
def test_mujoco_draws_by_egl_without_a_screen(
    variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With GLFW and no screen, MuJoCo ends the process at its second environment."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    drawn_by: list[str | None] = []
    render = CartPoleEnv.render
    monkeypatch.setattr(CartPoleEnv, "render", lambda env: drawn_by.append(os.environ.get("MUJOCO_GL")) or render(env))
    videos.first_picture(CARTPOLE)
    assert drawn_by == [expected]
    assert os.environ.get("MUJOCO_GL") == variables.get("MUJOCO_GL")


def test_drawing_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "MAX_VIDEOS_S", -1)
    with pytest.warns(UserWarning, match="no videos: the rest takes over -1 s to draw"):
        record_videos(CARTPOLE, 0, {"teacher": play(CARTPOLE, None, 1)}, (), tmp_path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
