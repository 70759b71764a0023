"""Benchmarks are run by hand; that they can be is seen here."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from .. import commands

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = [*sorted(BENCHMARKS.glob("*.py")), BENCHMARKS.parent / ".ci" / "ship_teacher.py"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_it_says_what_it_measures(program: Path) -> None:
    # In a fork, since some programs change environment variables, and each would repeat the imports.
    start = "import runpy, sys; sys.path[0] = {!r}; runpy.run_path({!r}, run_name='__main__')"
    said = commands.run("--help", before=start.format(str(program.parent), str(program)))
    assert (said.returncode, said.stderr) == (0, "")
    assert "usage" in said.stdout


def test_cells_of_the_matrix_are_valid_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    matrix = runpy.run_path(str(BENCHMARKS / "matrix.py"))
    names = ["/".join((cell[0], cell[1], cell[4])) for cell in matrix["CELLS"]]
    assert len({*names}) == len(names)
    for cell in matrix["CELLS"]:
        run = matrix["planned"](cell, "zoo:pong-dqn", tmp_path, [0])
        assert run.env.id == matrix["ENVIRONMENTS"][cell[0]]["id"]
        assert [*run.students] == [cell[1]]
