"""Files of each export format, and how they run."""

import shutil
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

from rldistill.core.errors import MissingExtraError
from rldistill.exporters.agents import AgentsRuntime
from rldistill.exporters.config import Format
from rldistill.exporters.runtimes import CRuntime, ExportedPolicy, Interface, NodeRuntime, OnnxRuntime, compiler
from rldistill.exporters.sb3 import Sb3Runtime

FILES: dict[Format, tuple[str, ...]] = {
    "onnx": ("student.onnx",),
    "int8": ("student.int8.onnx",),
    "c": ("student.c", "student.h", "student_test.c"),
    "html": ("student.html",),
    "sb3": ("student.zip",),
    "agents": (),
}
"""Files by format; those of `agents` have the names of the networks."""


def require_packages(formats: Sequence[Format]) -> None:
    """Raise MissingExtraError unless the packages of all formats are installed."""
    needed = dict.fromkeys(("onnx", "int8", "agents"), ("onnx", "onnxruntime"))
    for name in formats:
        if any(find_spec(package) is None for package in needed.get(name, ())):
            raise MissingExtraError(f"The export format {name}", "export")


def missing_tool(name: Format) -> str | None:
    """Return the reason why a format cannot run on this machine; None if it can."""
    if name == "c" and compiler() is None:
        return "not compiled: there is no C compiler. Install gcc or clang."
    if name == "html" and shutil.which("node") is None:
        return "not run: there is no Node. Open the page and check its test vectors."
    return None


def open_runtime(
    name: Format, folder: Path, interface: Interface, files: Collection[str], ram: int = 0, trusted: bool = True
) -> ExportedPolicy:
    """Return the exported policy of a format, of these files; `ram` is the size of the struct of the C source.

    The C source is always run; of an SB3 zip that is not `trusted`, no code is.

    Raises:
        CorruptArtifactError: The file does not load or compile.
    """
    if name == "agents":
        return AgentsRuntime(interface, folder, files)
    path = folder / FILES[name][0]
    if name == "c":
        return CRuntime(interface, folder, ram)
    if name == "html":
        return NodeRuntime(interface, path)
    return Sb3Runtime(interface, path, trusted) if name == "sb3" else OnnxRuntime(interface, path)
