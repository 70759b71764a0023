"""Students that a person can read, as the report shows them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from rldistill.core.errors import ConfigError
from rldistill.io.atomic import read_json
from rldistill.reporting.interpret import draw, explain, is_drawn
from rldistill.reporting.videos import data_url
from rldistill.students.storage import load_native

MOST_LINES = 150
KINDS = ("tree", "linear", "ridge")


@dataclass(frozen=True)
class Readable:
    """A student in words, of which `more` lines are left out, or its weights as a picture."""

    policy: str
    folder: str
    text: str
    more: int
    picture: str


def readable(run: Path, policy: str, seed: int | None) -> Readable | None:
    """A student with one training seed; None of one that says nothing to a person.

    Raises:
        CorruptArtifactError: its files are broken.
    """
    folder = run / "students" / policy / f"seed-{seed}"
    if not (folder / "policy.json").is_file():
        return None
    document = read_json(folder / "policy.json")
    if isinstance(document, dict) and document.get("student") not in KINDS:
        return None
    student = load_native(folder)
    try:
        lines = explain(student).splitlines()
    except ConfigError:
        return None  # such as weights on random features
    picture = ""
    if is_drawn(student):
        with tempfile.TemporaryDirectory() as temporary:
            draw(student, Path(temporary) / "weights.png")
            picture = data_url(Path(temporary) / "weights.png", "image/png")
    where = f"{run.name}/{folder.relative_to(run)}"
    return Readable(policy, where, "\n".join(lines[:MOST_LINES]), max(0, len(lines) - MOST_LINES), picture)
