"""Share of a run's time that its progress file takes, and of a processor that `rldistill watch` takes beside it.

    python benchmarks/watch.py examples/pong-quick.yaml

The run is executed once, in a temporary folder, while a page is open. The first share is the time inside of the calls
that record progress, the second the processor time of the page's process after its first event.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import rldistill
from rldistill.io import progress_file
from rldistill.io.progress_file import MARK, ProgressFile

REPORT = "{name}: {part:.2f} s of {whole:.1f} s, {share:.2%}"


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Page:
    """Open page of a run: a process of `rldistill watch`, and a client that reads its events."""

    def __init__(self, run: Path) -> None:
        self.run, self.started, self.first = run, 0.0, 0.0
        self.process: subprocess.Popen[str] | None = None
        threading.Thread(target=self.open, daemon=True).start()

    def open(self) -> None:
        while not (self.run / MARK).exists():
            time.sleep(0.1)
        command = [sys.executable, "-m", "rldistill", "watch", str(self.run), "--no-browser"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        url = self.process.stdout.readline().split()[1]
        with urllib.request.urlopen(f"{url}events") as events:
            events.readline()
            self.started, self.first = time.monotonic(), processor_seconds(self.process.pid)
            while events.readline():
                pass

    def close(self) -> tuple[float, float]:
        """End the process; return its processor time since the first event, and the time since then."""
        assert self.process is not None
        assert self.started, "the run was over before the page was open; use more epochs or steps"
        used, whole = processor_seconds(self.process.pid) - self.first, time.monotonic() - self.started
        self.process.kill()
        self.process.wait()
        return used, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default="examples/pong-quick.yaml", help="run file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that override the file")
    arguments = parser.parse_args()
    recorded, updates, writes = 0.0, 0, 0
    update, seal = ProgressFile.update, progress_file.seal

    def timed(self: ProgressFile, **values: Any) -> None:
        nonlocal recorded, updates
        started = time.perf_counter()
        update(self, **values)
        recorded, updates = recorded + time.perf_counter() - started, updates + 1

    def counted(*values: Any) -> bytes:
        nonlocal writes
        writes += 1
        return seal(*values)

    ProgressFile.update, progress_file.seal = timed, counted  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run = rldistill.load_run(Path(arguments.file), [*arguments.overrides, f"out={out}"])
        page, started = Page(out), time.perf_counter()
        rldistill.run_all(run, quiet=True)
        whole = time.perf_counter() - started
        used, beside = page.close()
    print(f"{updates:,} updates, {writes:,} writes")
    print(REPORT.format(name="progress file", part=recorded, whole=whole, share=recorded / whole))
    print(REPORT.format(name="processor time of the page", part=used, whole=beside, share=used / beside))


if __name__ == "__main__":
    main()
