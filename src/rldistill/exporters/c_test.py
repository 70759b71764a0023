"""Test program in C: consecutive steps of a policy with the expected actions and parameters."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.exporters.c_source import TYPES, c_initializer, input_names
from rldistill.exporters.program import Program
from rldistill.exporters.texts import render
from rldistill.exporters.vectors import Vectors, equal_runs

TOLERANCE = 1e-4
MIN_RUN_BYTES = 1_000
"""Size of an entry from which on it is written as runs of equal bytes: pictures would fill megabytes of text."""


def write_c_test(program: Program, vectors: Vectors) -> str:
    """Return `student_test.c`, which exits with 1 if an action differs or a parameter by more than 1e-4 relative."""
    steps, action_type = len(vectors.starts), "int64_t" if program.action.dtype == "int64" else "float"
    tables, decode, arguments = _observations(program, vectors)
    tables.append(_table("expected_action", action_type, vectors.action.reshape(steps, -1)))
    tables.append(_table("expected_params", "float", vectors.params))
    tables.append(_table("starts", "uint8_t", vectors.starts.astype(np.uint8)))
    return render(
        "student_test.c", steps=steps, tables=tables, action_type=action_type, decode=decode, arguments=arguments,
        num_actions=max(program.action.size, 1), tolerance=TOLERANCE,
    )  # fmt: skip


def _observations(program: Program, vectors: Vectors) -> tuple[list[str], list[str], list[str]]:
    """Return the tables of the observations, the statements that decode a step, and the arguments of a step."""
    names = input_names(program.entries).values()
    steps = len(vectors.starts)
    tables, decode, arguments = [], [], []
    for name, (key, node) in zip(names, program.entries.items(), strict=True):
        values = vectors.entries[key or "obs"].reshape(steps, -1)
        kind = TYPES[node.dtype]
        if node.dtype == "uint8" and node.size >= MIN_RUN_BYTES:
            runs = _runs(values)
            tables.append(_table(f"{name}_runs", "uint8_t", runs))
            tables.append(f"static uint8_t {name}[{node.size}];")
            tables.append(f"static uint32_t {name}_at = 0;")
            decode += [
                f"for (uint32_t i = 0; i < {node.size}; {name}_at += 2)",
                f"    for (uint32_t end = i + {name}_runs[{name}_at + 1]; i < end; i++) "
                f"{name}[i] = {name}_runs[{name}_at];",
            ]
            arguments.append(name)
        else:
            tables.append(_table(name, kind, values))
            arguments.append(f"{name} + step * {max(node.size, 1)}")
    return tables, decode, arguments


def _runs(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return runs of equal bytes, value and length by turns; no run crosses the end of an observation."""
    runs: list[int] = []
    for row in values:
        for value, length in equal_runs(row):
            whole, rest = divmod(length, 255)
            runs += [value, 255] * whole + ([value, rest] if rest else [])
    return np.array(runs, np.uint8)


def _table(name: str, kind: str, values: NDArray[Any]) -> str:
    return f"static const {kind} {name}{c_initializer(values, kind)}"
