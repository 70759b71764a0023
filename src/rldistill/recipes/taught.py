"""The folder of a student, which tells who taught it."""

from __future__ import annotations

from pathlib import Path

from rldistill.artifacts import open_stage, read_json, write_json
from rldistill.errors import ConfigError
from rldistill.teachers.identity import identity
from rldistill.types import Policy

FILE = "teacher.json"


def require_taught_by(folder: Path, teacher: Policy) -> None:
    """Raise ConfigError if it is noted that another teacher taught the student of a folder."""
    path, asked = folder / FILE, identity(teacher)
    if path.exists() and (known := read_json(path)) != asked:
        raise ConfigError(
            f"{path}: the student was taught by {known}, now the teacher is {asked}. Go on with the teacher "
            "that it had, or let the new one teach: `rldistill distill FILE --overwrite`."
        )


def open_student(folder: Path, teacher: Policy, resume: bool, overwrite: bool) -> bool:
    """Prepare a student's folder as `open_stage` does; True if the student is there already.

    Raises:
        ConfigError: another teacher has begun to teach it.
    """
    path = folder / FILE
    if folder.exists() and [*folder.iterdir()] == [path]:
        path.unlink()  # nothing came of it
    if not overwrite:
        require_taught_by(folder, teacher)
    old = folder.exists() and any(folder.iterdir())
    done = open_stage(folder, folder / "policy.json", resume, overwrite)
    if overwrite or not old:  # who taught what is there from before this was noted, nobody knows
        write_json(path, identity(teacher))
    return done
