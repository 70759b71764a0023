"""Run benchmarks and write docs/benchmarks.md: machine, versions, date, and the ratios that each program prints.

`make bench` runs all programs below; `python benchmarks/page.py distill labels` runs two of them and keeps the other
sections of the page. Each section has the machine and the date of its own run.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import rldistill

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
PROGRAMS = {
    "distill": ["--turns", "3"],
    "atari": ["--fits", "--steps", "20000", "--epochs", "5", "--turns", "1"],
    "labels": ["--turns", "3"],
    "students": ["--turns", "3"],
    "collect": [],
    "evaluate": [],
    "export": [],
    "cloning": ["--seeds", "2"],
    "lunarlander_vs_imitation": [],
    "rl_vs_sb3": [],
}
"""Programs that print ratios, with their arguments; the last two compare with other libraries, and take hours."""
PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "stable-baselines3")
INTRODUCTION = """\
# Benchmarks

`make bench` writes this page; `python benchmarks/page.py NAME ...` repeats some of its sections. The figures are those
of the machine, date and load that each section names, as its program printed them. Ratios suffer less from other work
on the machine than speeds.
"""


def machine() -> str:
    """Return one line on the machine, its load, and the versions."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cpu[1] if cpu else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"load {os.getloadavg()[0]:.1f} before; Python {platform.python_version()}, rldistill {rldistill.__version__}, "
        f"{versions}"
    )


def section(name: str) -> str:
    """Run a program and return its section; raise CalledProcessError if it fails."""
    program, arguments = FOLDER / f"{name}.py", PROGRAMS[name]
    purpose = (ast.get_docstring(ast.parse(program.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    where, started = machine(), time.monotonic()
    output = subprocess.run(
        [sys.executable, str(program), *arguments], stdout=subprocess.PIPE, text=True, check=True, cwd=FOLDER.parent
    ).stdout
    command = " ".join(["python", f"benchmarks/{name}.py", *arguments])
    return (
        f"## {name}\n\n{purpose}\n\n{where}.\n\n`{command}`, {time.monotonic() - started:.0f} s:\n\n"
        f"```text\n{output.strip()}\n```\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="*", help=f"some of {', '.join(PROGRAMS)}; all by default")
    names = parser.parse_args().programs or [*PROGRAMS]
    if unknown := {*names} - {*PROGRAMS}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; expected some of {', '.join(PROGRAMS)}")
    old = re.split(r"^(?=## )", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:] if PAGE.exists() else []
    sections = {text[3:].partition("\n")[0]: text.strip() + "\n" for text in old}
    for name in names:
        print(f"== {name}", file=sys.stderr)
        sections[name] = section(name)
        missing = [key for key in PROGRAMS if key not in sections]
        parts = [INTRODUCTION, *(f"Not run yet: {', '.join(missing)}.\n" for _ in missing[:1])]
        # Written after each program, since the last ones take hours.
        PAGE.write_text("\n".join([*parts, *(sections[key] for key in PROGRAMS if key in sections)]), "utf-8")


if __name__ == "__main__":
    main()
