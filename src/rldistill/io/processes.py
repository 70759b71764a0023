"""Other processes of the package: their end, their stop by a signal, and the script that they import again."""

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from pathlib import Path

UNGUARDED = "the workers import this script again. Put its calls below `if __name__ == '__main__':`, or set workers: 1."


def end_with_parent() -> None:
    """Let this process end when its parent does, even by SIGKILL."""

    def watch(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def has_unguarded_script() -> bool:
    """Return True if the script of this process has no `if __name__ == "__main__":`, which new processes need."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    try:
        return file is not None and "__main__" not in Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def is_stopped(pid: int) -> bool:
    """Return True if a process was stopped by a signal, as far as the system shows it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False
