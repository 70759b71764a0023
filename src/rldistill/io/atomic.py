"""Files that are whole or not there: atomic writes, hashes, provenance, folders of stages."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rldistill.core.errors import ConfigError, CorruptArtifactError


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there, so that no reader sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path) -> Any:
    """Read one of our JSON files; raises CorruptArtifactError if it is missing or is not JSON."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptArtifactError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CorruptArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"{path}: not valid JSON ({error}); was it cut short or edited?") from None


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_stage(folder: Path, done: Path, resume: bool | None, overwrite: bool) -> bool:
    """Prepare a stage's folder; True if what it makes (`done`) is there already and may be used as it is.

    A folder with something in it is only gone on with (`resume`; None where that cannot be asked for) or thrown away
    (`overwrite`) when asked.
    """
    if folder.exists() and any(folder.iterdir()):
        if overwrite:
            shutil.rmtree(folder)
        elif not resume:
            step = "" if resume is None else " Go on with it: --resume."
            raise ConfigError(f"{folder} exists.{step} Throw it away: --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    return done.exists()
