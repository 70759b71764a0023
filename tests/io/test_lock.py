from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rldistill.core.errors import ConfigError
from rldistill.io.lock import lock_folder

HOLD = """
import sys, time
from pathlib import Path
from rldistill.io.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    for path in (folder, linked):
        with (
            pytest.raises(ConfigError, match=rf"^{path}: in use by .*, process {process.pid}\. Wait") as error,
            lock_folder(path),
        ):
            pass
        assert "\n" not in str(error.value)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (folder / ".lock").exists()
    with lock_folder(folder), lock_folder(linked):
        assert str(os.getpid()) in (folder / ".lock").read_text()
    assert not any(folder.iterdir())


def test_thread_is_refused_too(tmp_path: Path) -> None:
    errors: list[ConfigError] = []

    def run() -> None:
        try:
            with lock_folder(tmp_path):
                pass
        except ConfigError as error:
            errors.append(error)

    with lock_folder(tmp_path):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len(errors) == 1
    run()
    assert len(errors) == 1


def test_no_empty_folder_is_left(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "a" / "b"):
        pass
    assert not any(tmp_path.iterdir())
    with lock_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "mine"]
