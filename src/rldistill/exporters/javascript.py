"""Programs for JavaScript, in a page that runs offline."""

from __future__ import annotations

import base64
from importlib import resources
from typing import Any

import numpy as np

from rldistill.exporters.program import Program


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


def runtime() -> str:
    """Return the JavaScript that runs a program."""
    return (resources.files("rldistill.exporters") / "templates" / "policy.js").read_text("utf-8")
