"""Hostile folders of our own policies."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import PolicySpec
from rldistill.io.atomic import write_json
from rldistill.students import Mlp
from rldistill.students.storage import save_policy

from .watch import Case, Make, Payload


def native(change: Callable[[dict[str, Any]], None] = lambda document: None, header: bytes | None = None) -> Make:
    """A policy of ours with its document or its tensors tampered with."""

    def make(folder: Path, canary: Path) -> Path:
        spec = PolicySpec((4,), "float32", CategoricalHead((2,)))
        save_policy(Mlp((4,)).build(spec), folder, {})
        document = json.loads((folder / "policy.json").read_text())
        change(document)
        write_json(folder / "policy.json", document)
        if header is not None:
            (folder / "policy.safetensors").write_bytes(header)
        return folder

    return make


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            document = document[parent]
        document[last] = value

    return change


def lying(header: dict[str, Any], body: bytes = b"\0" * 64) -> bytes:
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + body


TENSOR = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
MAKES: dict[str, Make] = {
    "ours: factory": native(put("student", "os:system")),
    "ours: student": native(put("student", ["mlp"])),
    "ours: activation": native(put("config.activation", "os.system")),
    "ours: sizes": native(put("config.hidden", [10**9, 10**9])),
    "ours: more": native(put("config.factory", "os:system")),
    "ours: view": native(put("spec.view", [{"name": "os:system", "kwargs": {"command": "x"}}])),
    "ours: a wrapper that writes": native(put("spec.view", [{"name": "RecordVideo", "kwargs": {"video_folder": "x"}}])),
    "ours: dtype": native(put("spec.obs_dtype", "__class__")),
    "ours: a lying offset": native(header=lying({"output.weight": {**TENSOR, "data_offsets": [0, 1 << 40]}})),
    "ours: a lying shape": native(header=lying({"output.weight": {**TENSOR, "shape": [1 << 40, 4]}})),
    "ours: overlapping": native(header=lying({"a": TENSOR, "b": TENSOR})),
    "ours: a header longer than the file": native(header=struct.pack("<Q", 1 << 60) + b"{}"),
    "ours: a pickle for tensors": native(header=pickle.dumps(Payload(Path("x")))),
}
OWN_CASES = {name: Case(make) for name, make in MAKES.items()}
