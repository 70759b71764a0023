"""Hostile folders of exports, with certificates that fit their files."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.exporters.config import ExportConfig
from rldistill.exporters.export import export_policy
from rldistill.exporters.metadata import ExportContext
from rldistill.io.atomic import read_json, write_json
from rldistill.students import Linear
from rldistill.students.storage import load_native, save_policy

from .onnx_models import MAKES as ONNX_MAKES
from .run_folders import KINDS, command, special
from .sb3_zips import field
from .watch import Case, Make

ATTACK = b'#include <stdlib.h>\n__attribute__((constructor)) static void run(void) { system("touch CANARY"); }\n'


@lru_cache
def template() -> Path:
    """Return a folder with a policy and its export, without the original in place; it is made once."""
    folder, env = Path(tempfile.mkdtemp(prefix="rldistill-hostile-")), EnvConfig("CartPole-v1")
    save_policy(Linear().build(spec_from_env(env)), folder / "policy", {})
    config, context = ExportConfig(("onnx", "c", "sb3"), 50, 2), ExportContext("../policy")
    export_policy(load_native(folder / "policy"), env, folder / "export", config, context, progress=False)
    return folder


def sealed(change: Callable[[Path, dict[str, Any], Path], object], original: bool = False) -> Make:
    """Return a maker of a folder of which `change` alters files and certificate, whose hashes then fit again."""

    def make(folder: Path, canary: Path) -> Path:
        shutil.copytree(template(), folder, dirs_exist_ok=True)
        if not original:
            shutil.rmtree(folder / "policy")
        export = folder / "export"
        document = read_json(export / "parity.json")
        change(export, document, canary)
        for record in document["formats"].values():
            for name in record["files"]:
                if (export / name).is_file():
                    record["files"][name] = hashlib.sha256((export / name).read_bytes()).hexdigest()
        write_json(export / "parity.json", document)
        return export

    return make


def code(name: str) -> Callable[[Path, dict[str, Any], Path], object]:
    def change(export: Path, document: dict[str, Any], canary: Path) -> None:
        path = export / name
        path.write_bytes(ATTACK.replace(b"CANARY", str(canary).encode()) + path.read_bytes())

    return change


def put(*keys: str, value: Any) -> Callable[[Path, dict[str, Any], Path], object]:
    def change(export: Path, document: dict[str, Any], canary: Path) -> None:
        part = document
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value

    return change


def onnx(make: Make) -> Callable[[Path, dict[str, Any], Path], object]:
    def change(export: Path, document: dict[str, Any], canary: Path) -> None:
        other = export / "other"
        other.mkdir()
        make(other, canary).replace(export / "student.onnx")
        shutil.rmtree(other)

    return change


def payload(export: Path, document: dict[str, Any], canary: Path) -> None:
    from stable_baselines3 import PPO

    other = export / "other"
    other.mkdir()
    field("clip_range", PPO, "CartPole-v1")(other, canary).replace(export / "student.zip")
    shutil.rmtree(other)


VIDEO = {"name": "RecordVideo", "kwargs": {"video_folder": "videos"}}
CHANGES: dict[str, Make] = {
    "code in the C source": sealed(code("student.c")),
    "code in the header": sealed(code("student.h")),
    "a pickle in the zip": sealed(payload),
    "an environment with code": sealed(put("env", "id", value="os:abort"), original=True),
    "a wrapper with code": sealed(put("env", "wrappers", value=[{"name": "os:abort", "kwargs": {}}]), original=True),
    "a wrapper that writes": sealed(put("env", "wrappers", value=[VIDEO]), original=True),
    "an argument that names a file": sealed(put("env", "kwargs", value={"xml_file": "/etc/passwd"}), original=True),
    "another policy": sealed(put("policy", value="/etc/SECRET")),
    "a policy that is code": sealed(put("policy", value="os:abort")),
    "a name with an escape": sealed(put("kind", value="\x1b[31mred")),
    **{name: sealed(onnx(make)) for name, make in ONNX_MAKES.items()},
}


def linked(name: str, kind: str) -> Make:
    def make(folder: Path, canary: Path) -> Path:
        shutil.copytree(template(), folder, dirs_exist_ok=True)
        special(f"export/{name}", kind)(folder)
        return folder / "export"

    return make


def export_cases() -> dict[str, Case]:
    """Return all cases."""
    files = ("parity.json", "student.onnx", "vectors.safetensors")
    makes = CHANGES | {f"{name}: {kind}": linked(name, kind) for name in files for kind in KINDS}
    return {
        f"export: {name}": Case(make, command("export", "verify", "{0}", "--quiet")) for name, make in makes.items()
    }
