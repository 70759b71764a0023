"""Hostile folders of runs, datasets and exports, which commands read and show."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path

from rldistill.cli.main import app
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import RLDistillError
from rldistill.core.spec import EnvConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import PolicyRuns
from rldistill.evaluation.evaluate import evaluate
from rldistill.io.atomic import write_json
from rldistill.students import Linear, Tree
from rldistill.students.storage import save_policy

from .watch import Case, Make

Change = Callable[[Path], object]
"""Change of a folder with two runs, a dataset and students."""
ESCAPES = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x9b2J",
    "\u202ereversed",
    "[/bold]",
    "[link=file:///]x",
    "\r\x08",
)


def command(*arguments: str) -> Callable[[Path], None]:
    """Return a call of the command line whose output must hold no control characters."""

    def call(path: Path) -> None:
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            status = app([argument.format(path) for argument in arguments], standalone_mode=False)
        text = output.getvalue()
        assert all(line.isprintable() for line in text.splitlines())
        assert "SECRET" not in text
        if status:
            raise RLDistillError(text.strip())

    return call


@lru_cache
def template() -> Path:
    """Return a folder with two evaluated runs, a dataset, and interpretable students; it is made once."""
    folder, env = Path(tempfile.mkdtemp(prefix="rldistill-hostile-")), EnvConfig("CartPole-v1")
    spec = spec_from_env(env)
    teacher = Linear().build(spec).eval()
    collect(env, teacher, CollectConfig(steps=512, epsilon=0.3, block_steps=64), folder / "dataset", progress=False)
    for name, student in (("linear", Linear()), ("tree", Tree())):
        save_policy(student.build(spec), folder / name, {})
    policies = {"teacher": PolicyRuns("teacher", {None: teacher}), "linear": PolicyRuns("student", {0: teacher})}
    evaluate(env, policies, EvaluateConfig(episodes=2), folder / "run", progress=False)
    (folder / "run/students/linear/seed-0").mkdir(parents=True)
    shutil.copytree(folder / "run", folder / "other")
    for run in ("run", "other"):
        (folder / run / "config.yaml").write_text(f"env: CartPole-v1\nseed: {len(run)}\n")
    return folder


def changed(change: Change) -> Make:
    def make(folder: Path, canary: Path) -> Path:
        shutil.copytree(template(), folder, dirs_exist_ok=True)
        change(folder)
        return folder

    return make


def write(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def replace(name: str, old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        changed = text.replace(old, json.dumps(new)[1:-1])
        if name.endswith(".json"):
            write_json(folder / name, json.loads(changed))
        else:
            (folder / name).write_text(changed)

    return change


def special(name: str, kind: str) -> Change:
    """Put a pipe, an endless device, a folder, a secret, or a huge file of holes in place of a file."""

    def change(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "holes":
            with path.open("wb") as file:
                file.truncate(20 << 30)
        elif kind == "loop":
            path.symlink_to(path.name)
        else:
            path.symlink_to({"device": "/dev/zero", "secret": "/etc/passwd", "random": "/dev/urandom"}[kind])

    return change


KINDS = ("pipe", "folder", "holes", "loop", "device", "secret", "random")
BLOCK = "dataset/blocks/round-000-stream-000-block-00000.parquet"
WATCH = ("watch", "{0}/run", "{0}/other", "--text")
READERS: dict[str, tuple[str, ...]] = {
    "run/config.yaml": ("compare", "{0}/run", "{0}/other"),
    "run/evaluation.json": ("compare", "{0}/run", "{0}/other"),
    "run/.progress.json": WATCH,
    "run/provenance.json": WATCH,
    "run/.lock": WATCH,
    "run/students/linear/seed-0/metrics.jsonl": WATCH,
    "dataset/manifest.json": ("dataset", "info", "{0}/dataset"),
    BLOCK: ("dataset", "check", "{0}/dataset"),
    "linear/policy.json": ("explain", "{0}/linear"),
    "linear/policy.safetensors": ("explain", "{0}/linear"),
}
ALIASES = "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)])
MERGES = "\n".join(
    ["m0: &m0 {x: 1}"] + [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 12)]
)
YAML = {
    "aliases of aliases": ALIASES,
    "merged keys": MERGES,
    "an alias of itself": "a: &a [*a]",
    "a command": "a: !!python/object/apply:os.system ['true']",
    "deep": "[" * 5_000,
    "deep mappings": "".join(" " * n + "a:\n" for n in range(1_000)),
    "a long number": f"a: {'9' * 6_000}",
    "a long hexadecimal number": f"a: 0x{'f' * 60_000}",
    "base 60": f"a: {':'.join(['1'] * 60_000)}",
    "an impossible date": "a: 2001-99-99",
    "not text": "\ud7ff\x00",
    "too long": f"a: [{'x, ' * 400_000}]",
    "not a mapping": "[1, 2]",
    "two documents": "a: 1\n---\nb: 2",
}
JSON = {
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 900 + "1" + "}" * 900,
    "a number of 400 digits": "9" * 400,
    "a number of 5,000 digits": "9" * 5_000,
    "NaN": '{"a": NaN}',
    "a lone surrogate": '{"env": "\\ud800"}',
    "a list": "[]",
    "many keys": "{" + ", ".join(f'"{n}": 1' for n in range(100_000)) + "}",
}


def run_cases() -> dict[str, Case]:
    """Return all cases."""
    cases = {}
    for name, arguments in READERS.items():
        for kind in KINDS:
            cases[f"{name}: {kind}"] = Case(changed(special(name, kind)), command(*arguments))
        if name.endswith(".json"):
            for title, content in JSON.items():
                cases[f"{name}: {title}"] = Case(changed(write(name, content)), command(*arguments))
    for title, content in YAML.items():
        compare = command("compare", "{0}/run", "{0}/other")
        cases[f"compare: {title}"] = Case(changed(write("run/config.yaml", content)), compare)
        cases[f"watch: {title}"] = Case(changed(write("run/config.yaml", content)), command(*WATCH))
    for title, content in JSON.items():
        cases[f"watch: evaluation, {title}"] = Case(changed(write("run/evaluation.json", content)), command(*WATCH))
    for escape in ESCAPES:
        renamed = {
            "an environment in compare": ("run/evaluation.json", "CartPole-v1"),
            "a policy in compare": ("run/evaluation.json", "linear"),
            "a setting in compare": ("run/config.yaml", "seed"),
            "an environment of a dataset": ("dataset/manifest.json", "CartPole-v1"),
        }
        for title, (name, old) in renamed.items():
            arguments = READERS.get(name, READERS["run/config.yaml"])
            cases[f"{title}: {escape!r}"] = Case(changed(replace(name, old, escape)), command(*arguments))
    return cases
