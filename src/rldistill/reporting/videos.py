"""The filmed episodes of a run, a student's beside its teacher's, as many as there is room for."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rldistill.evaluation.videos import LABELS, notable
from rldistill.reporting.charts import number_text


@dataclass(frozen=True)
class Film:
    """One filmed episode."""

    who: str
    result: str
    url: str


@dataclass(frozen=True)
class Pair:
    """An episode of a student and, where that was filmed, its teacher's of the same seed."""

    label: str
    episode: int
    films: list[Film]


def data_url(path: Path, kind: str) -> str:
    """A file as a link that holds it."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def films(folder: Path, evaluation: dict[str, Any], room: int) -> tuple[dict[str, list[Pair]], int]:
    """By policy, what of the episodes in `folder` fits into `room` characters; and how many do not.

    The best episodes of all students come first, then the worst, then the median ones, then those of other policies.
    """
    policies = evaluation["policies"]
    teacher = next(name for name, entry in policies.items() if entry["kind"] == "teacher")
    students = [name for name, entry in policies.items() if entry["kind"] == "student"]
    others = [name for name in policies if name not in students]
    chosen: dict[tuple[str, str], Pair] = {}
    left_out = 0
    for names, label in itertools.product((students, others), ("best", "worst", "median")):
        for name in names:
            pair = _pair(folder, evaluation, name, label, teacher)
            if pair is None:
                continue
            size = sum(len(film.url) for film in pair.films)
            if size > room:
                left_out += len(pair.films)
                continue
            room -= size
            chosen[name, label] = pair
    shown = {
        name: [chosen[name, label] for label in LABELS if (name, label) in chosen] for name in (*students, *others)
    }
    return {name: pairs for name, pairs in shown.items() if pairs}, left_out


def _pair(folder: Path, evaluation: dict[str, Any], name: str, label: str, teacher: str) -> Pair | None:
    """The first training seed's: those are the ones that are filmed."""
    own, beside = folder / f"{name}-{label}.mp4", folder / f"{name}-{label}-teacher.mp4"
    if not own.is_file():
        return None
    runs = {who: evaluation["policies"][who]["runs"][0]["returns"] for who in (name, teacher)}
    number = notable(runs[name])[label]
    found = [(name, own), *([(teacher, beside)] if beside.is_file() else [])]
    said = [Film(who, number_text(runs[who][number]), data_url(path, "video/mp4")) for who, path in found]
    return Pair(label, number, said)
