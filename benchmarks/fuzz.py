"""Fuzzing of the parsers of files: seeded mutations of valid files, and a count of the errors that are not ours.

`python benchmarks/fuzz.py --minutes 30 --parser run_file` prints one line; without --parser, all share the time.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from gymnasium import spaces

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import RLDistillError
from rldistill.core.spec import EnvConfig
from rldistill.data.blocks import read_block
from rldistill.data.manifest import Manifest
from rldistill.data.minari.read import _Metadata, _Source
from rldistill.envs.spaces import spec_from_env, spec_from_spaces
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.evaluate import evaluate
from rldistill.evaluation.results import Evaluation
from rldistill.io.atomic import read_foreign_json, write_json
from rldistill.policies.network import NetworkPolicy
from rldistill.reporting import write_report
from rldistill.run.config import load_run
from rldistill.students import Mlp
from rldistill.students.features import Fourier
from rldistill.students.storage import load_native, save_policy
from rldistill.teachers.load import load_policy
from rldistill.teachers.sb3.load import load_sb3

CARTPOLE, COLLECTION = EnvConfig("CartPole-v1"), CollectConfig(steps=256, epsilon=0.3, block_steps=64)
VALUES = (
    None, True, False, 0, 1, -1, 2, 10**6, 10**18, 10**400, -(10**30), 0.5, -0.0, 1e-300, 1e308, float("inf"),
    float("nan"), "", "x",
    "0", "\x00", "\ud800", "\x1b[31m", "[/b]", "é" * 200, "a:b", "os:abort", "../../x",
    [], [[]], {}, {"": None}, [0] * 300, {"type": "mlp"},
)  # fmt: skip
KEYS = ("", "x", "\ud800", "type", "id", "name", "kwargs", "path", "env", "config", "policy", "features", "a:b", "\x1b")


@dataclass
class Fuzzer:
    """Parser, and a function that writes the mutated file of a seed and reads it."""

    name: str
    attempt: Callable[[random.Random], object]


def mutate(value: Any, rng: random.Random, times: int = 1) -> Any:
    """Return JSON with random changes: values replaced, keys removed, renamed, added or copied from elsewhere."""
    value = json.loads(json.dumps(value))
    for _ in range(times):
        places: list[tuple[Any, Any]] = []
        pending = [value] if isinstance(value, dict | list) else []
        while pending:
            node = pending.pop()
            keys = [*node] if isinstance(node, dict) else [*range(len(node))]
            places += [(node, key) for key in keys]
            pending += [node[key] for key in keys if isinstance(node[key], dict | list)]
        if not places:
            return copy.deepcopy(rng.choice(VALUES))
        node, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[rng.choice(KEYS)] = node.pop(key)
        elif kind == 2 and isinstance(node, dict):
            node[rng.choice(KEYS)] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 3:
            other, other_key = rng.choice(places)
            node[key] = json.loads(json.dumps(other[other_key]))
        elif kind == 4 and isinstance(node[key], str | int | float) and not isinstance(node[key], bool):
            text = list(str(node[key]) or "x")
            text[rng.randrange(len(text))] = chr(rng.randrange(32, 127))
            node[key] = "".join(text)
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def flip(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them changed, cut, or doubled."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed))
        changed[at : at + rng.choice((0, 1, 1, 4))] = rng.randbytes(rng.choice((0, 1, 1, 4)))
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed) or b"x"


def write(path: Path, value: Any) -> None:
    """Write an object with a hash that fits; any other value as it is."""
    try:
        write_json(path, value)
    except (AttributeError, ValueError):  # no object, or numbers that are not in JSON
        path.write_text(json.dumps(value), "utf-8", "replace")


def teacher() -> NetworkPolicy:
    """Return a small policy."""
    return Mlp((4,)).build(spec_from_env(CARTPOLE)).eval()


def run_file(folder: Path) -> Fuzzer:
    """Return the fuzzer of run files, as values and as text."""
    import yaml

    document = {
        "name": "x", "out": str(folder / "out"), "seed": 1, "seeds": [0, 1],
        "env": {"id": "CartPole-v1", "kwargs": {}, "wrappers": [{"name": "FlattenObservation", "kwargs": {}}]},
        "teacher": {"path": "a.zip"}, "collect": {"steps": 100, "epsilon": 0.1},
        "students": {"small": {"type": "mlp", "hidden": [8], "features": {"type": "fourier", "num": 8}},
                     "tree": {"type": "tree"}},
        "distill": {"epochs": 2, "loss": {"type": "kl", "temperature": 2.0}}, "recipe": {"name": "dagger"},
        "evaluate": {"episodes": 3},
    }  # fmt: skip
    text = yaml.safe_dump(document)
    path = folder / "run.yaml"

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.5:
            path.write_bytes(flip(text.encode(), rng))
        else:
            changed = mutate(document, rng, rng.choice((1, 2, 4)))
            path.write_text(json.dumps(changed) if rng.random() < 0.5 else yaml.safe_dump(changed), "utf-8", "replace")
        load_run(path)

    return Fuzzer("run_file", attempt)


def policy_json(folder: Path) -> Fuzzer:
    """Return the fuzzer of `policy.json`, with a hash that fits."""
    save_policy(Mlp((4,), features=Fourier(8)).build(spec_from_env(CARTPOLE)), folder, {})
    document = json.loads((folder / "policy.json").read_text(encoding="utf-8"))

    def attempt(rng: random.Random) -> None:
        changed = mutate(document, rng, rng.choice((1, 2, 4)))
        write(folder / "policy.json", changed)
        load_native(folder)

    return Fuzzer("policy_json", attempt)


def manifest(folder: Path) -> Fuzzer:
    """Return the fuzzer of `manifest.json`, with a hash that fits."""
    collect(
        CARTPOLE, teacher(), CollectConfig(steps=256, epsilon=0.3, block_steps=64), folder / "dataset", progress=False
    )
    path = folder / "dataset" / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))

    def attempt(rng: random.Random) -> None:
        changed = mutate(document, rng, rng.choice((1, 2, 4)))
        write(path, changed)
        Manifest.read(path.parent)

    return Fuzzer("manifest", attempt)


def blocks(folder: Path) -> Fuzzer:
    """Return the fuzzer of blocks: bytes, and the metadata of a whole Parquet file."""
    collect(
        CARTPOLE, teacher(), CollectConfig(steps=256, epsilon=0.3, block_steps=64), folder / "dataset", progress=False
    )
    source = next((folder / "dataset" / "blocks").glob("*.parquet"))
    content, table, path = source.read_bytes(), pq.read_table(source), folder / source.name

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.5:
            path.write_bytes(flip(content, rng))
        else:
            metadata = dict(table.schema.metadata or {})
            key = rng.choice([*metadata])
            try:
                metadata[key] = json.dumps(mutate(json.loads(metadata[key]), rng)).encode()
            except ValueError:
                metadata[key] = flip(metadata[key] or b"x", rng)
            changed = table.replace_schema_metadata(metadata)
            if rng.random() < 0.5:
                names = rng.sample(changed.column_names, rng.randrange(1, len(changed.column_names)))
                changed = changed.select(names)
            pq.write_table(changed, path)
        read_block(path)

    return Fuzzer("blocks", attempt)


def minari(folder: Path) -> Fuzzer:
    """Return the fuzzer of the metadata of Minari."""
    from minari.serialization import serialize_space

    box = spaces.Box(np.float32(-1), np.float32(1), (3,))
    entries = {"a": spaces.Discrete(3), "b": box, "c": spaces.MultiBinary(4)}
    observations = json.loads(serialize_space(spaces.Dict(entries)))
    document = {
        "observation_space": observations, "action_space": json.loads(serialize_space(spaces.Discrete(2))),
        "total_episodes": 1, "total_steps": 2, "data_format": "hdf5", "env_spec": {"id": "CartPole-v1", "kwargs": {}},
    }  # fmt: skip
    path = folder / "metadata.json"

    def attempt(rng: random.Random) -> None:
        changed = mutate(document, rng, rng.choice((1, 2, 4)))
        if isinstance(changed, dict):
            for key in ("observation_space", "action_space", "env_spec"):
                if key in changed and rng.random() < 0.95:
                    changed[key] = json.dumps(changed[key])
        path.write_text(json.dumps(changed), encoding="utf-8")
        metadata = _Metadata.parse(read_foreign_json(path), path)
        spec_from_spaces("minari", metadata.observation_space, metadata.action_space)

    assert _Source
    return Fuzzer("minari", attempt)


def sb3_json(folder: Path) -> Fuzzer:
    """Return the fuzzer of the JSON in zips of Stable-Baselines3."""
    import zipfile

    from stable_baselines3 import PPO

    path = folder / "agent.zip"
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}).save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(members["data"])
    used = ("policy_class", "policy_kwargs", "observation_space", "action_space")
    document = {key: document[key] for key in used}

    def attempt(rng: random.Random) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", json.dumps(mutate(document, rng, rng.choice((1, 2, 4)))))
            archive.writestr("policy.pth", members["policy.pth"])
        load_sb3(path)

    assert load_policy
    return Fuzzer("sb3_json", attempt)


def results(folder: Path) -> Fuzzer:
    """Return the fuzzer of `evaluation.json`, with a hash that fits, up to the report."""
    config = EvaluateConfig(episodes=3, videos=False)
    policies = {"teacher": teacher(), "student": Mlp((2,)).build(spec_from_env(CARTPOLE)).eval()}
    evaluate(CARTPOLE, policies, config, folder, progress=False)
    path = folder / "evaluation.json"
    document = json.loads(path.read_text(encoding="utf-8"))

    def attempt(rng: random.Random) -> None:
        write(path, mutate(document, rng, rng.choice((1, 2, 4))))
        print(Evaluation.read(path), file=io.StringIO())
        write_report(folder)

    return Fuzzer("results", attempt)


PARSERS: dict[str, Callable[[Path], Fuzzer]] = {
    "run_file": run_file,
    "policy_json": policy_json,
    "manifest": manifest,
    "blocks": blocks,
    "minari": minari,
    "sb3_json": sb3_json,
    "results": results,
}


def fuzz(name: str, seconds: float, seed: int = 0, tries: int | None = None) -> tuple[int, Counter[str]]:
    """Return the number of tries within a time, and the errors that are not ours by their place, with a seed each."""
    uncaught: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzzer, end, count = PARSERS[name](Path(temporary)), time.monotonic() + seconds, 0
        while time.monotonic() < end and (tries is None or count < tries):
            count += 1
            try:
                fuzzer.attempt(random.Random(f"{name} {seed + count - 1}"))
            except Exception as error:
                if isinstance(error, RLDistillError) and str(error).isprintable():
                    continue
                frame = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}: {str(error)!r}"[:200]
                if place not in uncaught:
                    print(f"seed {seed + count - 1}: {place}", file=sys.stderr, flush=True)
                uncaught[place] += 1
    return count, uncaught


def main() -> None:
    """Fuzz, print the counts, and exit with 1 if there are uncaught errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--parser", choices=[*PARSERS])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names, failed = [arguments.parser] if arguments.parser else [*PARSERS], False
    for name in names:
        count, uncaught = fuzz(name, 60 * arguments.minutes / len(names), arguments.seed)
        print(f"{name:12} {count:9,} tries  {sum(uncaught.values()):6,} uncaught, {len(uncaught)} kinds", flush=True)
        failed |= bool(uncaught)
    sys.exit(failed)


if __name__ == "__main__":
    main()
