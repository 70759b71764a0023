"""Test program in C: consecutive steps of a policy with the expected actions and parameters."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.exporters.c_source import TYPES, c_initializer, input_names
from rldistill.exporters.program import Program
from rldistill.exporters.vectors import Vectors, equal_runs

TOLERANCE = 1e-4
MIN_RUN_BYTES = 1_000
"""Size of an entry from which on it is written as runs of equal bytes: pictures would fill megabytes of text."""


def write_c_test(program: Program, vectors: Vectors) -> str:
    """Return `student_test.c`, which exits with 1 if an action differs or a parameter by more than 1e-4 relative."""
    steps, discrete = len(vectors.starts), program.action.dtype == "int64"
    action_type = "int64_t" if discrete else "float"
    tables, decode, arguments = _observations(program, vectors)
    tables.append(_table("expected_action", action_type, vectors.action.reshape(steps, -1)))
    tables.append(_table("expected_params", "float", vectors.params))
    tables.append(_table("starts", "uint8_t", vectors.starts.astype(np.uint8)))
    actions = max(program.action.size, 1)
    wrong = (
        "action[i] != wanted" if discrete else f"fabsf(action[i] - wanted) > {TOLERANCE}f * fmaxf(1.0f, fabsf(wanted))"
    )
    decoded = "".join(f"\n        {line}" for line in decode)
    return f"""/* Compares {steps} recorded steps. Build: cc -std=c99 student.c student_test.c -lm */
#include <math.h>
#include <stdio.h>

#include "student.h"

{chr(10).join(tables)}

static policy_t policy;

int main(void) {{
    int32_t failed = 0;
    for (int32_t step = 0; step < {steps}; step++) {{
        {action_type} action[POLICY_NUM_ACTIONS];
        float params[POLICY_NUM_PARAMS];
        int32_t same = 1;
        if (starts[step]) policy_reset(&policy);{decoded}
        policy_step(&policy, {", ".join(arguments)}, action, params);
        for (int32_t i = 0; i < {actions}; i++) {{
            const {action_type} wanted = expected_action[step * {actions} + i];
            if ({wrong}) same = 0;
        }}
        for (int32_t i = 0; i < POLICY_NUM_PARAMS; i++) {{
            const float wanted = expected_params[step * POLICY_NUM_PARAMS + i];
            if (!(fabsf(params[i] - wanted) <= {TOLERANCE}f * fmaxf(1.0f, fabsf(wanted)))) same = 0;
        }}
        failed += !same;
    }}
    printf("%d of {steps} steps match\\n", (int)({steps} - failed));
    return failed > 0;
}}
"""


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
