"""Watch over code that reads hostile files: an audit hook, limits of time and memory, and payloads."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rldistill.core.errors import RLDistillError
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import PolicySpec
from rldistill.teachers.load import load_policy

FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.remove", "os.rename", "os.mkdir", "os.link",
    "subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class", "shutil.rmtree", "ctypes.dlopen",
)  # fmt: skip
MAX_SECONDS, MAX_BYTES = 60, 2 << 30
CARTPOLE = PolicySpec((4,), "float32", CategoricalHead((2,)))
Make = Callable[[Path, Path], Path]
"""From a folder and the file that a payload would make: the file to load."""
_watched: list[str] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event in FORBIDDEN or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")):
        _watched.append(f"{event} {args!r:.200}")
    if event == "open" and "SECRET" in str(args[0]):
        _watched.append(f"{event} {args!r:.200}")


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect the forbidden events within the block."""
    global _watched
    _watched = seen = []
    try:
        yield seen
    finally:
        _watched = None


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@dataclass(frozen=True)
class Case:
    """Hostile file or folder, and the call that reads it."""

    make: Make
    read: Callable[[Path], object] = lambda path: load_policy(path, spec=CARTPOLE)


def require_harmless(case: Case, tmp_path: Path) -> None:
    """Read a hostile file: an error of one line or success, nothing run or written, little time and memory."""
    folder, canary = tmp_path / "file", tmp_path / "canary"
    folder.mkdir()
    path = case.make(folder, canary)
    before = sorted(tmp_path.rglob("*"))
    message, started = "", time.monotonic()
    with watched() as seen:
        try:
            case.read(path)
        except RLDistillError as error:
            message = str(error)
    assert seen == []
    assert time.monotonic() - started < MAX_SECONDS
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        assert resource.getrusage(who).ru_maxrss << 10 < MAX_BYTES
    assert len(message) < 3_000
    assert message.isprintable()
    assert not message or str(folder) in message or path.name in message
    assert sorted(tmp_path.rglob("*")) == before
