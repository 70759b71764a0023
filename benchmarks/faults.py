"""Failures of the file system during a run: each must end in one line, and `--resume` must go on to the same results.

A full disk (ENOSPC) and broken ones (EIO) and too many open files (EMFILE) are injected below Python, Arrow and Rust
by a small library in C, at a random operation in the folder of the run and at all later ones. Too large files (EFBIG)
are made by a limit of the process. Each row of the table is a kind of failure.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[4096];
static int number, kinds, done, first = -1;

void arm(const char *path, int error, int mask, int after) {
    snprintf(folder, sizeof folder, "%s", path);
    number = error; kinds = mask; done = 0; first = after;
}
int count(void) { return done; }

static int fails(int kind, int fd, const char *path) {
    char link[64], target[4096];
    if (first < 0 || !(kinds & kind)) return 0;
    if (path == NULL) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, target, sizeof target - 1);
        if (length < 0) return 0;
        target[length] = 0;
        path = target;
    }
    if (strncmp(path, folder, strlen(folder)) || done++ < first) return 0;
    errno = number;
    return 1;
}

#define REAL(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)
#define OPEN(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT) ? 3 : 1)
#define MODE mode_t mode; va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest)
int open(const char *path, int flags, ...) { MODE; return fails(OPEN(flags), 0, path) ? -1 : REAL(open, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE; return fails(OPEN(flags), 0, path) ? -1 : REAL(open64, path, flags, mode); }
ssize_t write(int fd, const void *data, size_t size) { return fails(4, fd, NULL) ? -1 : REAL(write, fd, data, size); }
int fsync(int fd) { return fails(8, fd, NULL) ? -1 : REAL(fsync, fd); }
int rename(const char *old, const char *new) { return fails(16, 0, new) ? -1 : REAL(rename, old, new); }
ssize_t read(int fd, void *data, size_t size) { return fails(32, fd, NULL) ? -1 : REAL(read, fd, data, size); }
"""  # noqa: E501
OPEN, OPEN_TO_WRITE, WRITE, FSYNC, RENAME, READ = (1 << bit for bit in range(6))
INJECTED = {
    "ENOSPC": (errno.ENOSPC, OPEN_TO_WRITE | WRITE | FSYNC | RENAME),
    "EIO": (errno.EIO, OPEN | WRITE | FSYNC | RENAME | READ),
    "EMFILE": (errno.EMFILE, OPEN),
}
RUN = {
    "env": {"id": "CartPole-v1"}, "teacher": "teacher", "seeds": [0],
    "collect": {"steps": 600, "epsilon": 0.3, "block_steps": 32, "num_streams": 2},
    "students": {"small": {"type": "mlp", "hidden": [8]}, "tree": {"type": "tree", "max_depth": 3}},
    "distill": {"epochs": 4, "batch_size": 64, "learning_rate": 0.01}, "evaluate": {"episodes": 3, "videos": False},
}  # fmt: skip

MODULES = ("rldistill.run.stages", "stable_baselines3", "torch._dynamo", "pandas", "sklearn.cluster", "sklearn.tree")
"""Imports of a run, which each fork would repeat."""


def prepare(root: Path) -> None:
    """Write a run file and its teacher."""
    import torch

    from rldistill.core.spec import EnvConfig
    from rldistill.envs.spaces import spec_from_env
    from rldistill.students import Mlp
    from rldistill.students.storage import save_policy

    torch.manual_seed(0)
    teacher = Mlp((8,)).build(spec_from_env(EnvConfig("CartPole-v1"))).eval()
    with torch.no_grad():
        teacher.output.weight *= 30  # so that there is something to learn
    save_policy(teacher, root / "teacher", {})
    document = RUN | {"teacher": str(root / "teacher"), "out": str(root / "out")}
    (root / "run.json").write_text(json.dumps(document), encoding="utf-8")


def call(root: Path, before: Callable[[], object], after: Callable[[], int] = lambda: 0) -> tuple[int, str, int]:
    """Run in a fork, after `before`; return the exit code, all output, and the result of `after` (below 2^31)."""
    from rldistill.cli.main import main
    from rldistill.io import tensors

    tensors.CHECKPOINT_INTERVAL_S, tensors.MAX_CHECKPOINT_SHARE = 0.0, float("inf")
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number in (1, 2):
                os.dup2(sender, number)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            sys.argv = ["rldistill", "run", str(root / "run.json"), "--resume"]
            before()
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(sender, f"\n{after()}".encode())
            os._exit(code)
    os.close(sender)
    with open(receiver, encoding="utf-8", errors="replace") as pipe:  # noqa: PTH123 - a descriptor
        output, _, last = pipe.read().rpartition("\n")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output, int(last)


def hashes(out: Path) -> dict[str, str]:
    """Return the hashes of all blocks and weights, and of the returns in the evaluation."""
    files = [*out.rglob("*.parquet"), *out.rglob("policy.safetensors")]
    result = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    result["returns"] = json.dumps({name: entry["runs"] for name, entry in evaluation["policies"].items()})
    return result


def problem(root: Path, fault: Callable[[], object], expected: dict[str, str]) -> str | None:
    """Run with a fault, check the line and the checkpoints, resume without it; return the first problem."""
    from rldistill.core.errors import RLDistillError
    from rldistill.io.tensors import read_tensors

    shutil.rmtree(root / "out", ignore_errors=True)
    code, output, _ = call(root, fault)
    lines = output.strip().splitlines() or [""]
    if "Traceback" in output or code not in (0, 2) or (code == 2 and not lines[-1].startswith("error: ")):
        return f"exit code {code}: {output[-1500:]}"
    for checkpoint in (root / "out").rglob("checkpoints/*.safetensors"):
        try:
            read_tensors(checkpoint)
        except RLDistillError as error:
            return f"broken checkpoint: {error}"
    again, text, _ = call(root, lambda: None)
    if again != 0 or (found := hashes(root / "out")) != expected:
        return f"after {lines[-1]!r}, --resume: exit code {again}: {text[-1500:] if again else 'other results'}"
    if left := [path.name for path in (root / "out").rglob(".*") if not path.match(".progress.*json")]:
        return f"left behind: {', '.join(left)}"
    assert found
    return None


def main() -> None:
    """Print the table, and exit with 1 if a failure ended badly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=20, help="failures of each kind")
    parser.add_argument("--kind", choices=[*INJECTED, "EFBIG"], action="append", help="all kinds by default")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if "RLDISTILL_FAULTS" not in os.environ:  # start again with the library in the process
        with tempfile.TemporaryDirectory() as temporary:
            source, library = Path(temporary) / "faults.c", Path(temporary) / "faults.so"
            source.write_text(LIBRARY, encoding="utf-8")
            subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
            variables = os.environ | {"LD_PRELOAD": str(library), "RLDISTILL_FAULTS": temporary}
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=variables).returncode)
    warnings.simplefilter("ignore")
    root, library = Path(os.environ["RLDISTILL_FAULTS"]), ctypes.CDLL(os.environ["LD_PRELOAD"])
    for module in MODULES:
        importlib.import_module(module)
    prepare(root)
    code, output, _ = call(root, lambda: None)
    assert code == 0, output
    expected, failed = hashes(root / "out"), False
    sizes = sorted({path.stat().st_size for path in (root / "out").rglob("*") if path.is_file()})
    print(f"{'failure':<10}{'one line, same results':>24}{'':3}first problem", flush=True)
    for kind in arguments.kind or [*INJECTED, "EFBIG"]:
        rng, problems = random.Random(f"{kind} {arguments.seed}"), list[str]()
        faults: list[Callable[[], object]]
        if kind == "EFBIG":
            limits = [rng.choice(sizes[1:]) - 1 for _ in range(arguments.faults)]
            faults = [partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)) for limit in limits]
        else:
            arm = partial(library.arm, str(root / "out").encode(), *INJECTED[kind])
            shutil.rmtree(root / "out")
            total = call(root, partial(arm, 1 << 30), library.count)[2]
            faults = [partial(arm, rng.randrange(total)) for _ in range(arguments.faults)]
        for fault in faults:
            if (found := problem(root, fault, expected)) is not None:
                problems.append(found)
        good = f"{len(faults) - len(problems)} of {len(faults)}"
        print(f"{kind:<10}{good:>24}{'':3}{problems[0] if problems else ''}", flush=True)
        failed |= bool(problems)
    sys.exit(failed)


if __name__ == "__main__":
    main()
