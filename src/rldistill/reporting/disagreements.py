"""Section of the report on the largest disagreements between a student and its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import read_json
from rldistill.reporting.tables import unit_text
from rldistill.reporting.videos import data_url

MAX_VALUES = 24
"""Largest number of values of an observation in the report."""

MAX_PICTURE_BYTES = 100_000
"""Largest size of a picture: twelve of them for each student must leave space for the videos."""


@dataclass(frozen=True)
class Gallery:
    """Moments of one student, in groups of similar ones."""

    policy: str
    unit: str
    groups: list[list[dict[str, Any]]]


def gallery(run: Path, policy: str) -> Gallery | None:
    """Return the moments of a student; None without any.

    Raises:
        CorruptArtifactError: the file is broken.
    """
    folder = run / "disagreements" / policy
    path = folder / "disagreements.json"
    if not path.is_file():
        return None
    document = read_json(path)
    try:
        groups = [[_shown(moment, document["names"], folder) for moment in group] for group in document["groups"]]
        unit = unit_text(str(document["unit"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(
            f"{path}: the file is incomplete ({error!r}). Run `rldistill evaluate` again."
        ) from None
    return Gallery(policy, unit, groups) if groups else None


def _shown(moment: dict[str, Any], names: list[str], folder: Path) -> dict[str, Any]:
    """Return the texts of a moment, with its picture, or its first values by name and the number of further ones."""
    values = moment["obs"] or []
    frame = folder / Path(moment["frame"]).name if moment["frame"] else None
    fits = frame is not None and frame.is_file() and frame.stat().st_size <= MAX_PICTURE_BYTES
    seed = "" if moment["training_seed"] is None else f"training seed {moment['training_seed']}, "
    return {
        "title": f"{seed}episode {moment['episode']}, step {moment['step']}",
        "regret": f"{moment['regret']:.3g}",
        "student": action_text(moment["student_action"]),
        "teacher": action_text(moment["teacher_action"]),
        "picture": data_url(frame, "image/png") if frame is not None and fits else "",
        "numbers": [(name, f"{value:.3g}") for name, value in zip(names, values[:MAX_VALUES], strict=False)],
        "more": max(0, len(values) - MAX_VALUES),
    }


def action_text(action: Any) -> str:
    """Return an action, or all parts of an action, as text."""
    if isinstance(action, list):
        return "(" + ", ".join(map(action_text, action)) + ")"
    return f"{action:.3g}"
