"""SIGKILL of commands at random moments: `--resume` must end with the hashes of a run without a kill.

A command is killed up to three times in one folder, each time at a random moment within its usual time, and then
resumed to its end. The hashes of all blocks and weights, and the content of `evaluation.json` and `search.json` without
measured times, must be those of a command that nothing stopped. Each row of the table is a command. Checkpoints are
written after every epoch and update, so that kills meet those, too.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from faults import prepare

ADDRESS = "127.0.0.1:6399"
MAX_KILLS = 3
BASE: dict[str, Any] = {
    "env": {"id": "CartPole-v1"}, "seeds": [0], "verify": False,
    "collect": {"steps": 1_600, "epsilon": 0.3, "block_steps": 25, "num_streams": 4, "envs_per_stream": 2},
    "students": {"mlp": {"type": "mlp", "hidden": [8]}},
    "distill": {"epochs": 20, "patience": 0, "batch_size": 64, "learning_rate": 0.01},
    "evaluate": {"episodes": 120, "max_episodes": 120, "videos": False},
    "ppo": {"total_steps": 2_048, "num_envs": 4, "rollout_length": 32, "epochs": 2, "eval_every": 512},
    "dqn": {"total_steps": 2_000, "offline_steps": 50, "batch_size": 16, "gradient_steps": 1, "eval_every": 1_000},
}  # fmt: skip
TREE = {"tree": {"type": "tree", "max_depth": 3}}
DAGGER = {"name": "dagger", "rounds": 2, "steps_per_round": 200}
CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "collect, 1 worker": (["collect"], {}),
    "collect, 2 workers": (["collect"], {"execution": {"workers": 2}}),
    "collect, 4 workers": (["collect"], {"execution": {"workers": 4}}),
    "collect, Ray": (["collect"], {"execution": {"backend": "ray", "workers": 4, "address": ADDRESS}}),
    "distill": (["collect", "distill"], {"students": BASE["students"] | TREE, "seeds": [0, 1]}),
    "dagger": (["collect", "distill"], {"recipe": DAGGER}),
    "ppd": (["distill"], {"recipe": {"name": "ppd"}}),
    "qdagger": (["collect", "distill"], {"recipe": {"name": "qdagger"}}),
    "evaluate": (["collect", "distill", "evaluate"], {}),
    "search": (["collect", "search --own"], {"students": BASE["students"] | TREE}),
}
"""Commands that make the folder, of which the last one is killed, and the settings of the run."""
MEASURED = {"latency", "latency_us", "batch_latency_us", "seconds", "sha256"}


def start(root: Path, command: str, out: Path) -> int:
    """Start a command in a fork, which has imported everything; return its process id."""
    from rldistill.cli.main import main
    from rldistill.io import tensors
    from rldistill.rl import dqn
    from rldistill.search import halving

    tensors.CHECKPOINT_INTERVAL_S, tensors.MAX_CHECKPOINT_SHARE = 0.0, float("inf")
    dqn.LOG_INTERVAL_STEPS, halving.MIN_UPDATES = 200, 200
    if (child := os.fork()) != 0:
        return child
    code = 99
    try:
        log = os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for number in (1, 2):
            os.dup2(log, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        verb, *options = command.split()
        sys.argv = ["rldistill", verb, str(root / "run.json"), *options, "--resume", "--quiet", f"out={out}"]
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        (root / "modules").write_text("\n".join(sys.modules), encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(root: Path, command: str, out: Path) -> str:
    """Run a command to its end; return its output if it failed. Later ones start with the modules that it imported."""
    code = os.waitstatus_to_exitcode(os.waitpid(start(root, command, out), 0)[1])
    for module in (root / "modules").read_text(encoding="utf-8").splitlines():
        if module not in sys.modules:  # so that kills do not meet imports alone
            with suppress(Exception):
                importlib.import_module(module)
    return "" if code == 0 else f"exit code {code}: {(root / 'log').read_text(encoding='utf-8')[-1_500:]}"


def kill(root: Path, command: str, out: Path, delay: float) -> bool:
    """Start a command and kill it after a time; return False if it ended before."""
    child = start(root, command, out)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def without_times(value: Any) -> Any:
    """Return JSON without measured times."""
    if isinstance(value, Mapping):
        return {key: without_times(item) for key, item in value.items() if key not in MEASURED}
    return [*map(without_times, value)] if isinstance(value, list) else value


def results(out: Path) -> dict[str, str]:
    """Return the hashes of blocks, weights and results."""
    found = {}
    for path in sorted(out.rglob("*")):
        content = None
        if path.suffix == ".parquet" or path.name in ("policy.safetensors", "manifest.json"):
            content = path.read_bytes()
        elif path.name in ("evaluation.json", "search.json"):
            content = json.dumps(without_times(json.loads(path.read_bytes()))).encode()
        if content is not None:
            found[str(path.relative_to(out))] = hashlib.sha256(content).hexdigest()
    return found


def measure(root: Path, name: str, kills: int, minutes: float, rng: random.Random) -> tuple[int, list[str], float]:
    """Return the number of kills, the problems, and the usual seconds of a command."""
    (*before, command), settings = CASES[name]
    document = BASE | settings | {"teacher": str(root / "teacher")}
    (root / "run.json").write_text(json.dumps(document), encoding="utf-8")
    base, whole, out = root / "base", root / "whole", root / "out"
    for folder in (base, whole):
        shutil.rmtree(folder, ignore_errors=True)
    for earlier in before:
        assert not (problem := finish(root, earlier, base)), problem
    base.mkdir(exist_ok=True)
    shutil.copytree(base, whole)
    assert not (problem := finish(root, command, whole)), problem
    shutil.rmtree(whole)
    shutil.copytree(base, whole)
    started = time.monotonic()
    assert not (problem := finish(root, command, whole)), problem
    seconds, expected = time.monotonic() - started, results(whole)
    deadline = time.monotonic() + 60 * minutes
    done, problems = 0, list[str]()
    while done < kills and time.monotonic() < deadline:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(base, out)
        for _ in range(min(MAX_KILLS, kills - done)):
            if not kill(root, command, out, rng.uniform(0, seconds)):
                break
            done += 1
        if problem := finish(root, command, out):
            problems.append(problem)
        elif (found := results(out)) != expected:
            names = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
            problems.append(f"other results: {', '.join(sorted(names)[:3])}")
        elif left := [path.name for path in out.rglob(".*.tmp.*")]:
            problems.append(f"left behind: {', '.join(left[:3])}")
    return done, problems, seconds


def main() -> None:
    """Print the table, and exit with 1 if a resumed command had other results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills of each command")
    parser.add_argument("--case", choices=[*CASES], action="append", help="all commands by default")
    parser.add_argument("--minutes", type=float, default=math.inf, help="time for the kills of each command")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    names, cluster = arguments.case or [*CASES], None
    if "collect, Ray" in names and importlib.util.find_spec("ray") is None:
        names.remove("collect, Ray")
        print("without collect on Ray, which is not installed")
    if "collect, Ray" in names:
        os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ["RAY_AUTH_MODE"] = "disabled"  # also of the drivers, which have an address
        host, _, port = ADDRESS.partition(":")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        command += [f"--node-ip-address={host}", "--num-cpus=2", "--include-dashboard=false"]
        cluster = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    total, failed, rng = 0, 0, random.Random(arguments.seed)
    print(f"{'killed':<20}{'kills':>6}{'usual s':>9}   problems", flush=True)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            prepare(Path(temporary))
            for name in names:
                done, problems, seconds = measure(Path(temporary), name, arguments.kills, arguments.minutes, rng)
                total, failed = total + done, failed + len(problems)
                print(f"{name:<20}{done:>6}{seconds:>9.1f}   {problems[0] if problems else 'none'}", flush=True)
    finally:
        if cluster is not None:
            cluster.terminate()
            cluster.wait()
    print(f"{total} kills, {failed} folders with other results")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
