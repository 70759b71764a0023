"""Programs for JavaScript, in a page that runs offline."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import CorruptArtifactError
from rldistill.exporters.program import Program
from rldistill.exporters.texts import read_text
from rldistill.exporters.vectors import Vectors, equal_runs
from rldistill.io.untrusted import MAX_WEIGHTS_BYTES, read_regular

DOCUMENT_PREFIX = "const DOCUMENT = "


def program_json(program: Program) -> dict[str, Any]:
    """Return a program as JSON for `Policy` of policy.js: nodes refer to nodes and to ranges of the weights."""
    nodes = program.nodes
    number = {node: index for index, node in enumerate(nodes)}
    weights: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    end, entries = 0, []
    for node in nodes:
        arrays = {}
        for name, array in node.arrays.items():
            arrays[name] = [end, end := end + array.size]
            weights.append(array.astype(np.float32).ravel())
        entries.append({
            "kind": node.kind, "shape": node.shape, "dtype": node.dtype, "inputs": [number[x] for x in node.inputs],
            "arrays": arrays, "settings": dict(node.settings),
        })  # fmt: skip
    joined = np.concatenate([*weights, np.zeros(0, np.float32)]).astype("<f4")
    return {
        "nodes": entries,
        "action": number[program.action],
        "params": number[program.params],
        "nextState": None if program.next_state is None else number[program.next_state],
        "stateSize": 0 if program.state is None else program.state.size,
        "weights": base64.b64encode(joined.tobytes()).decode(),
    }


def write_html(program: Program, vectors: Vectors, facts: dict[str, Any]) -> str:
    """Return a page that runs the policy offline: a form for the observation, the action, and the test vectors.

    `facts` has `title`, `text`, `env` (the id of the environment) and `names` (of the numbers of each entry).
    """
    head = program.spec.head
    document = {
        "program": program_json(program),
        "facts": {"kind": head.kind, "nvec": head.nvec or None, **facts},
        "vectors": {
            "entries": {name: [_runs(step) for step in values] for name, values in vectors.entries.items()},
            "starts": vectors.starts.tolist(),
            "action": vectors.action.reshape(len(vectors.starts), -1).tolist(),
            "params": vectors.params.tolist(),
        },
    }
    # No text in the document ends the script, whatever its names contain.
    text = json.dumps(_finite(document), ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return read_text("policy.html").replace("/*POLICY*/", read_text("policy.js")).replace("/*DOCUMENT*/", text)


def read_program(path: Path) -> dict[str, Any]:
    """Return the program in an exported page, as data.

    Raises:
        CorruptArtifactError: The page holds none.
    """
    text = read_regular(path, MAX_WEIGHTS_BYTES).decode("ascii", "replace")
    line = next((line for line in text.splitlines() if line.startswith(DOCUMENT_PREFIX)), "")
    try:
        program: dict[str, Any] = json.loads(line.removeprefix(DOCUMENT_PREFIX).removesuffix(";"))["program"]
    except (ValueError, KeyError, TypeError):
        raise CorruptArtifactError(f"{path}: the page holds no program. Export again.") from None
    return program


def _runs(values: NDArray[Any]) -> list[float]:
    """Return numbers as runs: value, length, value, length."""
    return [number for run in equal_runs(values.astype(np.float64).ravel()) for number in run]


def _finite(value: Any) -> Any:
    """Return a JSON value without infinite numbers, which JSON does not have: bounds are in the weights."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
