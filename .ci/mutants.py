"""Mutation tests with the operators of mutmut (`pip install mutmut==3.8.1`), in one forked process for each mutant.

    python .ci/mutants.py src/rldistill/losses --tests tests/losses tests/contracts/test_losses.py

A mutant of a function swaps the code of the imported function and runs the tests that execute the mutated lines, the
fastest first; a mutant at class or module level imports the package again. Not counted are mutants in error texts,
docstrings, type annotations, decorators, imports, assertions, warnings, progress, `__all__`, and `strict=True` of zip.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators

OPTIONS = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
EXCLUDED = (cst.Raise, cst.Annotation, cst.Assert, cst.Decorator, cst.Import, cst.ImportFrom)
SILENT_CALLS = {"warn", "cast", "stage_progress", "report.update", "progress.update"}
TYPE_NAMES = {"Annotated", "Literal", "Callable", "list", "dict", "tuple", "NDArray"}
TEXT_NAMES = {"__all__", "advice", "message", "problem", "RESUME"}


@dataclass(frozen=True)
class Mutant:
    """Source of a file with one change, in the lines `start` to `end`."""

    file: Path
    start: int
    end: int
    code: str
    diff: str


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider, ParentNodeProvider)

    def __init__(self) -> None:
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, int, int]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if any(isinstance(node, kind) for kind, _ in mutation_operators) and not self._is_excluded(node):
            start, end = self._lines(node)
            for kind, operator in mutation_operators:
                if isinstance(node, kind):
                    self.found += [(node, new, start, end) for new in operator(node) if not _is_text(node, new)]
        return True

    def _chain(self, node: cst.CSTNode | None) -> Iterator[cst.CSTNode]:
        while node is not None:
            yield node
            node = self.get_metadata(ParentNodeProvider, node, None)

    def _is_excluded(self, node: cst.CSTNode) -> bool:
        return any(isinstance(parent, EXCLUDED) or _is_silent(parent) for parent in self._chain(node))

    def _lines(self, node: cst.CSTNode) -> tuple[int, int]:
        simple = next(
            (p for p in self._chain(node) if isinstance(p, cst.SimpleStatementLine | cst.BaseCompoundStatement)), node
        )
        chosen = self.get_metadata(PositionProvider, simple if isinstance(simple, cst.SimpleStatementLine) else node)
        return chosen.start.line, chosen.end.line


def _name(node: cst.CSTNode) -> str:
    if isinstance(node, cst.Attribute):
        return f"{_name(node.value)}.{node.attr.value}"
    return node.value if isinstance(node, cst.Name) else ""


def _is_silent(node: cst.CSTNode) -> bool:
    """Return True for docstrings, types, texts, warnings and progress."""
    if isinstance(node, cst.Expr):
        return isinstance(node.value, cst.SimpleString | cst.ConcatenatedString)
    if isinstance(node, cst.Subscript):
        return _name(node.value) in TYPE_NAMES
    if isinstance(node, cst.Call):
        return _name(node.func) in SILENT_CALLS or _name(node.func).endswith(".warn")
    if isinstance(node, cst.Assign):
        names = [_name(target.target) for target in node.targets]
        is_alias = any(name[:1].isupper() and not name.isupper() for name in names)
        return any(name in TEXT_NAMES for name in names) or is_alias
    return isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == "strict"


def _is_text(node: cst.CSTNode, new: cst.CSTNode) -> bool:
    """Return True if a call loses `strict`, or the text that names a requirement."""
    if not (isinstance(node, cst.Call) and isinstance(new, cst.Call)):
        return False
    old = [arg for arg in node.args if not any(arg.deep_equals(kept) for kept in new.args)]
    is_text = [
        isinstance(arg.value, cst.SimpleString | cst.FormattedString) and "require" in _name(node.func) for arg in old
    ]
    return any(is_text) or any(arg.keyword is not None and arg.keyword.value == "strict" for arg in old)


def make_mutants(file: Path) -> list[Mutant]:
    """Return all mutants of a file that compile."""
    source, visitor, mutants = file.read_text(), _Visitor(), dict[str, Mutant]()
    wrapper = MetadataWrapper(cst.parse_module(source))
    wrapper.visit(visitor)
    for node, new, start, end in visitor.found:
        code = wrapper.module.deep_replace(node, new).code  # type: ignore[arg-type]
        try:
            compile(code, str(file), "exec")
        except SyntaxError:
            continue
        lines = difflib.unified_diff(source.split("\n"), code.split("\n"), lineterm="", n=0)
        mutants[code] = Mutant(
            file, start, end, code, "\n".join(line for line in lines if line[:2] not in ("--", "++", "@@"))
        )
    mutants.pop(source, None)
    return [*mutants.values()]


def _split_code(code: types.CodeType, functions: dict[tuple[str, int], types.CodeType]) -> Any:
    """Move the code of functions at module and class level to `functions`; return a key of the rest."""
    rest = []
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType) and constant.co_flags & 2:  # CO_NEWLOCALS: a function
            functions[constant.co_qualname, sum(name == constant.co_qualname for name, _ in functions)] = constant
        else:
            rest.append(_split_code(constant, functions) if isinstance(constant, types.CodeType) else repr(constant))
    return code.co_code, code.co_names, rest


def _key(code: types.CodeType) -> Any:
    constants = [_key(part) if isinstance(part, types.CodeType) else repr(part) for part in code.co_consts]
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_argcount


def _swap(mutant: Mutant) -> bool:
    """Swap the code of the mutated functions; return False if the mutant needs an import."""
    path, old, new = str(mutant.file), dict[tuple[str, int], types.CodeType](), dict[tuple[str, int], types.CodeType]()
    if (
        _split_code(compile(mutant.file.read_text(), path, "exec"), old)
        != _split_code(compile(mutant.code, path, "exec"), new)
        or old.keys() != new.keys()
    ):
        return False
    changed = {name for name in old if _key(old[name]) != _key(new[name])}
    done = set()
    functions = [item for item in gc.get_objects() if isinstance(item, types.FunctionType)]
    for function in functions:
        code = function.__code__
        for name in changed if code.co_filename == path else ():
            if (code.co_qualname, code.co_firstlineno) == (name[0], old[name].co_firstlineno):
                if len(code.co_freevars) != len(new[name].co_freevars):
                    return False
                function.__code__ = new[name]
                done.add(name)
    return bool(changed) and done == changed


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import of one module from the source of its mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        parts = mutant.file.with_suffix("").parts
        self.name = ".".join(parts[parts.index("rldistill") :]).removesuffix(".__init__")

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        folders = [str(self.mutant.file.parent)] if self.mutant.file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, self.mutant.file, loader=self, submodule_search_locations=folders
        )

    def exec_module(self, module: types.ModuleType) -> None:
        exec(compile(self.mutant.code, str(self.mutant.file), "exec"), module.__dict__)


class Runner:
    """Plugin of pytest that runs the tests once to trace them, and then for each mutant in a fork."""

    def __init__(self, mutants: list[Mutant], tests: list[str], out: Path, seconds: float) -> None:
        self.mutants, self.tests, self.out, self.seconds = mutants, tests, out, seconds
        self.files = {str(mutant.file) for mutant in mutants}
        self.lines: set[tuple[str, int]] | None = None
        self.fixtures: dict[str, set[tuple[str, int]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        """Trace fixtures that several tests share, on behalf of all of them."""
        if self.lines is None or fixturedef.scope == "function":
            return (yield)
        outer, self.lines = self.lines, set()
        try:
            return (yield)
        finally:
            self.fixtures.setdefault(fixturedef.argname, set()).update(self.lines)
            outer |= self.lines
            self.lines = outer

    def _trace(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        if event == "line" and self.lines is not None:
            self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace

    def _run(self, session: pytest.Session, items: list[pytest.Item], stop: bool = True) -> dict[str, Any]:
        """Run tests; return the seconds and lines of each."""
        found = {}
        for item, following in zip(items, [*items[1:], None], strict=True):
            self.lines, start = set(), time.time()
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            found[item.nodeid] = [time.time() - start, self.lines]
            if stop and session.testsfailed:
                raise SystemExit(1)
        return found

    def _baseline(self, session: pytest.Session) -> dict[str, Any]:
        sys.settrace(self._trace)
        threading.settrace(self._trace)
        found = self._run(session, session.items)
        for item in session.items:
            for name in getattr(item, "fixturenames", ()):
                found[item.nodeid][1] |= self.fixtures.get(name, set())
        return {name: [seconds, sorted(lines)] for name, (seconds, lines) in found.items()}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run all mutants; append their results to the file `out`."""
        status, text = _fork(lambda: json.dumps(self._baseline(session)), 3_600)
        assert status == "survived", f"the tests fail without a mutant: {text}"
        traced = {name: (seconds, {(*line,) for line in lines}) for name, (seconds, lines) in json.loads(text).items()}
        limit = 20 + 5 * sum(seconds for seconds, _ in traced.values())
        items = {item.nodeid: item for item in session.items}
        control = Mutant(self.mutants[0].file, 1, 1, self.mutants[0].file.read_text(), "none: must survive")
        for mutant in [control, *self.mutants]:
            touched = {(str(mutant.file), line) for line in range(mutant.start, mutant.end + 1)}
            names = [name for name, (_, lines) in traced.items() if touched & lines]
            names = sorted(names, key=lambda name: traced[name][0])
            total = accumulate(traced[name][0] for name in names)
            chosen = [items[name] for name, so_far in zip(names, total, strict=True) if so_far <= self.seconds]

            def check(mutant: Mutant = mutant, chosen: list[pytest.Item] = chosen) -> str:
                if _swap(mutant):
                    self._run(session, chosen)
                    return "" if chosen else "no test executes it"
                sys.meta_path.insert(0, _Importer(mutant))
                for name in [*sys.modules]:
                    if name.split(".")[0] in ("rldistill", "tests"):
                        del sys.modules[name]
                if pytest.main([*self.tests, "-x", *OPTIONS]):
                    raise SystemExit(1)
                return "imported again"

            status, text = _fork(check, limit)
            row = {"file": str(mutant.file), "line": mutant.start, "status": status, "text": text, "diff": mutant.diff}
            with self.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return True


def _fork(function: Any, limit: float) -> tuple[str, str]:
    """Call a function in a fork; return `survived` and its result, or `killed`."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            os.write(write, b"+")
            with os.fdopen(write, "w") as pipe:
                pipe.write(function() + "\n")
        finally:
            os._exit(0)
    os.close(write)
    timer = threading.Timer(limit, lambda: os.killpg(pid, signal.SIGKILL))
    timer.start()
    with os.fdopen(read) as pipe:
        text = pipe.read()
    timer.cancel()
    os.waitpid(pid, 0)
    return ("survived" if text.endswith("\n") else "killed"), text[1:].strip()


def main() -> None:
    """Print the numbers of mutants that tests killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--sample", type=int, help="number of random mutants (seed 0); all by default")
    parser.add_argument("--seconds", type=float, default=1e9, help="limit of the tests of a mutant, the fastest first")
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"))
    given = parser.parse_args()
    files = [
        file.resolve() for path in given.paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))
    ]
    mutants = [mutant for file in files for mutant in make_mutants(file)]
    if given.sample is not None:
        mutants = random.Random(0).sample(mutants, given.sample)
    given.out.write_text("")
    pytest.main([*given.tests, *OPTIONS], plugins=[Runner(mutants, given.tests, given.out, given.seconds)])
    rows = [json.loads(line) for line in given.out.read_text().splitlines()]
    print(Counter(row["status"] for row in rows))


if __name__ == "__main__":
    main()
