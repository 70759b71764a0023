"""Commands of rldistill in processes forked from one that has imported everything.

They start in milliseconds, whereas a new interpreter takes seconds for its imports; they are killed like any process.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_context = get_context("forkserver")
_MODULES = ["rldistill.cli.main", "rldistill.run.stages", "gymnasium", "stable_baselines3"]
# Imported by PyTorch's optimizers, Arrow and the evaluation when they are first used, which takes 1.5 s of CPU time.
_MODULES += ["torch._dynamo", "pandas", "sklearn.cluster"]
_context.set_forkserver_preload(_MODULES)

# Source instead of a function, whose module the new process could not import by its name.
_MAIN = """
import os, sys
from rldistill.cli.main import main
for number, file in ((1, stdout), (2, stderr)):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), number)
os.chdir(folder)
sys.path.insert(0, folder)
sys.argv = ["rldistill", *arguments]
exec(before)
main()
"""


def start(
    *arguments: str, folder: Path | None = None, before: str = "", stdout: str = os.devnull, stderr: str = os.devnull
) -> ForkServerProcess:
    """Start `rldistill ARGUMENTS` in a folder, the current one by default, after the Python code `before`."""
    variables = {"arguments": arguments, "before": before, "stdout": stdout, "stderr": stderr}
    variables["folder"] = str(folder or Path.cwd())
    process = _context.Process(target=exec, args=(_MAIN, variables))
    process.start()
    return process


def run(*arguments: str, folder: Path | None = None, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `rldistill ARGUMENTS` until it ends."""
    with tempfile.TemporaryDirectory() as output:
        files = [f"{output}/{name}" for name in ("stdout", "stderr")]
        process = start(*arguments, folder=folder, before=before, stdout=files[0], stderr=files[1])
        process.join()
        texts = [Path(file).read_text(encoding="utf-8") for file in files]
    assert process.exitcode is not None
    return subprocess.CompletedProcess(["rldistill", *arguments], process.exitcode, *texts)
