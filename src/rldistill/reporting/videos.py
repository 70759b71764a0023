"""Videos of a run inside its report, a student's beside its teacher's, as many as there is space for."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass
from pathlib import Path

from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.tables import number_text
from rldistill.evaluation.videos import LABELS, notable_episodes


@dataclass(frozen=True)
class Video:
    """Video of one episode."""

    policy: str
    result: str
    url: str


@dataclass(frozen=True)
class VideoPair:
    """Episode of a policy and, for a student, the teacher's episode with the same seed."""

    label: str
    episode: int
    videos: list[Video]


def data_url(path: Path, kind: str) -> str:
    """Return a file as a URL that contains it."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def embedded_videos(folder: Path, evaluation: Evaluation, space: int) -> tuple[dict[str, list[VideoPair]], int]:
    """Return the videos by policy that fit into `space` characters, and the number of those that do not.

    The best episodes of all students have priority, then the worst, then the median ones, then other policies.
    """
    students = list(evaluation.students)
    others = [name for name in evaluation.policies if name not in students]
    chosen: dict[tuple[str, str], VideoPair] = {}
    left_out = 0
    for names, label in itertools.product((students, others), ("best", "worst", "median")):
        for name in names:
            pair = _pair(folder, evaluation, name, label)
            if pair is None:
                continue
            size = sum(len(video.url) for video in pair.videos)
            if size > space:
                left_out += len(pair.videos)
                continue
            space -= size
            chosen[name, label] = pair
    names = [*students, *others]
    shown = {name: [chosen[name, label] for label in LABELS if (name, label) in chosen] for name in names}
    return {name: pairs for name, pairs in shown.items() if pairs}, left_out


def _pair(folder: Path, evaluation: Evaluation, name: str, label: str) -> VideoPair | None:
    """Return the videos of the first training seed, the only one that is recorded."""
    files = {name: folder / f"{name}-{label}.mp4"}
    if not files[name].is_file():
        return None
    beside = folder / f"{name}-{label}-teacher.mp4"
    if beside.is_file():
        files["teacher"] = beside
    returns = {policy: evaluation.policies[policy].runs[0].returns for policy in files}
    number = notable_episodes(returns[name])[label]
    videos = [
        Video(policy, number_text(returns[policy][number]), data_url(path, "video/mp4"))
        for policy, path in files.items()
    ]
    return VideoPair(label, number, videos)
