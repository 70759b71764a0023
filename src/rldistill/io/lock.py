"""Lock of a folder, so that two processes do not write into it at once."""

import errno
import fcntl
import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from rldistill.core.errors import ConfigError
from rldistill.io.atomic import LOCK, require_mode

P = ParamSpec("P")
T = TypeVar("T")
RETRY_DELAY_S = 0.01
_held = threading.local()


@contextmanager
def lock_folder(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, which is made; raise ConfigError if another process or thread holds it.

    The system frees the lock of a process that ends in any way. Locks within a lock of the same folder do nothing.
    Several processes can hold a `shared` lock, but none beside one that is not.
    """
    own: set[str] = _held.__dict__.setdefault("folders", set())
    path, made = os.path.realpath(folder), [part for part in (folder, *folder.parents) if not part.exists()]
    if path in own:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = _lock(folder, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    own.add(path)
    try:
        yield
    finally:
        own.remove(path)
        with suppress(OSError):
            if shared:  # the last one removes the file
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / LOCK).unlink(missing_ok=True)
        os.close(file)
        for part in made:  # only those that are empty
            with suppress(OSError):
                part.rmdir()


def is_locked(folder: Path) -> bool | None:
    """Return True if a process holds the lock of a folder; None if the file system, or another machine, hides that.

    A lock is known only by taking it, which here lasts for microseconds; `lock_folder` tries again after that.
    """
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        node = os.read(file, 200).decode(errors="replace").partition(",")[0]
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False if node == os.uname().nodename else None
    except OSError as error:
        return True if error.errno in (errno.EAGAIN, errno.EACCES) else None
    finally:
        os.close(file)


def locked(stage: Callable[P, T]) -> Callable[P, T]:
    """Return a stage that holds the lock of its argument `folder`, or of that attribute of its `task`."""
    signature = inspect.signature(stage)

    @functools.wraps(stage)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        require_mode(bound.arguments.get("mode", "new"))  # before the lock, which a worker does not take
        folder = bound.arguments["folder"] if "folder" in bound.arguments else bound.arguments["task"].folder
        with lock_folder(Path(folder)):
            return stage(*args, **kwargs)

    return call


def _lock(folder: Path, kind: int) -> int:
    retries = 1
    while True:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            # The one before may have removed the file between the two calls; then this lock holds nothing.
            if os.fstat(file).st_ino == (folder / LOCK).stat().st_ino:
                os.truncate(file, 0)
                os.write(file, f"{os.uname().nodename}, process {os.getpid()}".encode())
                return file
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                return file
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                os.close(file)
                raise
            if retries:  # after `is_locked` of another process
                retries -= 1
                os.close(file)
                time.sleep(RETRY_DELAY_S)
                continue
            owner = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            os.close(file)
            raise ConfigError(f"{folder}: in use by {owner}. Wait until it ends, or use another folder.") from None
        os.close(file)
