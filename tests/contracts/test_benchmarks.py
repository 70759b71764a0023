"""Benchmarks are run by hand; that they can be is seen here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAMS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_it_says_what_it_measures(program: Path) -> None:
    said = subprocess.run([sys.executable, str(program), "--help"], capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (0, "")
    assert "usage" in said.stdout
