"""The moments in which student and teacher part, as they stand in `disagreements/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import read_json
from rldistill.reporting.videos import data_url

MOST_VALUES = 24
"""Numbers of an observation that are shown."""
MOST_BYTES = 100_000
"""Of a picture: twelve of them for each student are to leave room for the films."""


@dataclass(frozen=True)
class Shown:
    """One moment: a picture, or the first numbers of the observation by name and how many `more` there are."""

    where: str
    regret: str
    student: str
    teacher: str
    picture: str
    values: list[tuple[str, str]]
    more: int


@dataclass(frozen=True)
class Gallery:
    """The moments of one student, those of a kind together."""

    policy: str
    unit: str
    groups: list[list[Shown]]


def gallery(run: Path, policy: str) -> Gallery | None:
    """A student's moments; None if there are none.

    Raises:
        CorruptArtifactError: the file is there and broken.
    """
    folder = run / "disagreements" / policy
    path = folder / "disagreements.json"
    if not path.is_file():
        return None
    document = read_json(path)
    try:
        groups = [[_shown(moment, folder) for moment in group] for group in document["groups"]]
        unit = "units of the return" if document["unit"] == "return" else str(document["unit"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(f"{path}: not as `rldistill evaluate` writes it ({error!r})") from None
    return Gallery(policy, unit, groups) if groups else None


def _shown(moment: dict[str, Any], folder: Path) -> Shown:
    values = moment["obs"] or []
    frame = folder / Path(moment["frame"]).name if moment["frame"] else None
    fits = frame is not None and frame.is_file() and frame.stat().st_size <= MOST_BYTES
    seed = "" if moment["training_seed"] is None else f"training seed {moment['training_seed']}, "
    return Shown(
        f"{seed}episode {moment['episode']}, step {moment['step']}",
        f"{moment['regret']:.3g}",
        action_text(moment["student_action"]),
        action_text(moment["teacher_action"]),
        data_url(frame, "image/png") if frame is not None and fits else "",
        [(f"obs[{place}]", f"{value:.3g}") for place, value in enumerate(values[:MOST_VALUES])],
        max(0, len(values) - MOST_VALUES),
    )


def action_text(action: Any) -> str:
    """An action, or the parts of one."""
    if isinstance(action, list):
        return "(" + ", ".join(map(action_text, action)) + ")"
    return f"{action:.3g}"
