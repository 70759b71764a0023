"""Command line: stages, options, and errors of one line."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import operator
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import rldistill
from rldistill.cli.doctor import EXTRAS
from rldistill.cli.errors import interrupt
from rldistill.cli.main import app
from rldistill.core.errors import CorruptArtifactError, MissingExtraError
from rldistill.io import atomic as artifacts

ROOT = Path(__file__).parents[2]
RUN = "env: {id: CartPole-v1}\nteacher: teacher.zip\nstudents: {linear: {type: linear}}\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cartpole.yaml"
    path.write_text(RUN)
    return path


@pytest.mark.parametrize("command", ["run", "train", "collect", "distill", "evaluate"])
def test_command_calls_its_stage(command: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    stage = "run_all" if command == "run" else f"run_{command}"
    monkeypatch.setattr(rldistill, stage, lambda *args: calls.append(args))
    result = CliRunner().invoke(app, [command, str(file), "collect.steps=64", "--resume", "--quiet"])
    assert result.exit_code == 0, result.output
    ((plan, mode, quiet),) = calls
    assert plan.collect.steps == 64
    assert (mode, quiet) == ("resume", True)


def test_sequential_overrides_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(rldistill, "run_evaluate", lambda plan, *_: calls.append(plan.evaluate.sequential))
    for arguments in ([], ["--sequential"], ["evaluate.max_episodes=120", "--sequential"]):
        result = CliRunner().invoke(app, ["evaluate", str(file), *arguments])
        assert result.exit_code == 0, result.output
    assert calls == [False, True, True]


def test_report_reads_the_results_of_other_stages(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(rldistill, "run_report", lambda plan: calls.append(plan.out))
    assert CliRunner().invoke(app, ["report", str(file), "out=elsewhere"]).exit_code == 0
    assert calls == [Path("elsewhere")]


def test_evaluation_updates_the_report_that_is_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(rldistill, "run_evaluate", lambda *_: None)
    monkeypatch.setattr(rldistill, "run_report", lambda plan: calls.append(plan.out))
    arguments = ["evaluate", str(file), "--resume", f"out={file.parent / 'run'}"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert calls == []
    (file.parent / "run").mkdir()
    (file.parent / "run" / "report.html").touch()
    artifacts.write_json(file.parent / "run" / "evaluation.json", {"episodes": 3})
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(result.stdout) == {"episodes": 3}
    assert calls == [file.parent / "run"]


def test_shard_of_an_evaluation_leaves_the_report(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rldistill.run.stages.run_shard", lambda *_: None)
    monkeypatch.setattr(rldistill, "run_report", None)
    (file.parent / "run").mkdir()
    (file.parent / "run" / "report.html").touch()
    arguments = ["evaluate", str(file), "--shard", "1/2", f"out={file.parent / 'run'}"]
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_json_is_alone_on_stdout(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(plan: Any, *_: Any) -> None:
        print("a table")
        artifacts.write_json(plan.out / "evaluation.json", {"episodes": 3})

    monkeypatch.setattr(rldistill, "run_evaluate", evaluate)
    result = CliRunner().invoke(app, ["evaluate", str(file), "--json"])
    assert json.loads(result.stdout) == {"episodes": 3}
    assert "a table" in result.stderr


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (CorruptArtifactError("x.parquet: cut\nshort"), 2, "error: x.parquet: cut short\n"),
        (KeyboardInterrupt(), 130, "stopped; continue with --resume\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "error: the disk is full (a/b). Make room"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/x"), 2, "error: /proc/x: No such file or"),
        (MemoryError(), 2, "error: there is not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
            2,
            "error: there is not enough memory",
        ),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "error: the disk is full. Make room"),
    ],
)
def test_failures_end_in_one_line(
    failure: BaseException, code: int, message: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(rldistill, "run_all", fail)
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == code
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_internal_errors_keep_their_traceback(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rldistill, "run_all", operator.truediv)  # which takes two arguments
    assert isinstance(CliRunner().invoke(app, ["run", str(file)]).exception, TypeError)


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit])
def test_exit_of_user_code_is_an_error(kind: type[BaseException], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: Any) -> None:
        raise kind(0)

    monkeypatch.setattr(rldistill, "run_all", leave)
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == 2
    assert re.search(rf"^error: .*leave failed: {kind.__name__}: 0 \(.*test_main.py, line \d+\)\.$", result.stderr)


@pytest.mark.parametrize("arguments", [["--traceback", "run"], ["run", "--traceback"], ["run"]])
def test_error_of_user_code_ends_in_one_line(arguments: list[str], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: Any) -> None:
        raise ZeroDivisionError("no rows\nat all")

    monkeypatch.setattr(rldistill, "run_all", lose)
    result = CliRunner().invoke(app, [*arguments, str(file)])
    assert result.exit_code == 2
    *before, line = result.stderr.splitlines()
    assert re.search(r"^error: .*lose failed: ZeroDivisionError: no rows at all \(.*test_main.py, line \d+\)\.$", line)
    assert any("Traceback" in text for text in before) == ("--traceback" in arguments)


def test_module_that_fails_at_its_import_is_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(rldistill, "run_all", lambda *_: importlib.import_module("broken_module"))
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: import of broken_module.py failed: RuntimeError: no licence (")


def test_output_files_are_checked_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_text("mine")
    for name, message in (("there.png", "exists"), ("", "is a folder")):
        result = CliRunner().invoke(app, ["explain", str(tmp_path / "none"), "--out", str(tmp_path / name)])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr
    result = CliRunner().invoke(app, ["search", "none.yaml", "--json", str(tmp_path)])
    assert "--json" in result.stderr
    assert (tmp_path / "there.png").read_text() == "mine"


def test_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout.strip()) == (0, metadata.version("rldistill"))


def test_command_without_resume_does_not_suggest_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rldistill.students.storage.load_native", fail)
    result = CliRunner().invoke(app, ["explain", str(tmp_path)])
    assert (result.exit_code, result.stderr) == (130, "stopped\n")


def test_resume_and_overwrite_exclude_each_other(file: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(file), "--resume", "--overwrite"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "choose one" in result.stderr


def test_bad_file_ends_the_process_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rldistill", "run", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none.yaml'}: there is no such file.\n"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from rldistill.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print([name for name in ('torch', 'numpy', 'gymnasium', 'yaml', 'rich', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_doctor_lists_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"all", "dev", "docs"}
    result = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert report["cores"] >= 1
    assert report["versions"]["torch"].startswith("2.")
    assert "with Pong" in report["roms"]
    assert set(report["extras"]) == set(EXTRAS)
    assert "python" in CliRunner().invoke(app, ["doctor"]).stdout


@pytest.mark.parametrize("command", ["info", "check"])
def test_dataset_commands_name_the_missing_file(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["dataset", command, str(tmp_path)])
    assert result.exit_code == 2
    assert "manifest.json: there is no such file. Name a folder that has it." in result.stderr


def test_full_disk_advises_to_continue_what_can_be_continued(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for command, advice in {"collect": "continue with --resume", "report": "try again"}.items():
        monkeypatch.setattr(rldistill, f"run_{command}", fail)
        result = CliRunner().invoke(app, [command, str(file)])
        expected = f"error: the disk is full. Make room, then {advice}.\n"
        assert (result.exit_code, result.stderr) == (2, expected)


@pytest.mark.parametrize("other", [AttributeError("module 'x' has no 'y'"), MissingExtraError("x", "export")])
def test_stop_that_a_library_makes_another_error_is_a_stop(
    other: Exception, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallow(*_: Any) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise other

    monkeypatch.setattr(rldistill, "run_all", swallow)
    monkeypatch.setattr("rldistill.cli.errors._interrupted", threading.Event())
    before = signal.signal(signal.SIGINT, interrupt)
    result = CliRunner().invoke(app, ["run", str(file)])
    signal.signal(signal.SIGINT, before)
    assert (result.exit_code, result.stderr) == (130, "stopped; continue with --resume\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("rich.console.Console().print(1)", ["run", "FILE"], "stopped; continue with --resume\n"),
        ("print(1, flush=True)", ["run", "FILE"], "stopped; continue with --resume\n"),
        ("None", ["teachers", "list"], ""),
        ("None", ["--help"], ""),
    ],
)
def test_end_of_the_reader_stops_a_command(stage: str, arguments: list[str], message: str, file: Path) -> None:
    code = "import rich.console, rldistill\nfrom rldistill.cli.main import main\n"
    code += f"rldistill.run_all = lambda *_: {stage}\nmain()"
    command = [sys.executable, "-c", code, *(str(file) if part == "FILE" else part for part in arguments)]
    read, write = os.pipe()
    os.close(read)  # as `| head` does after its last line
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (130, message)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["collect", "--help"], ["teachers", "list"]])
def test_output_on_a_full_disk_is_refused(arguments: list[str]) -> None:
    code = "from rldistill.cli.main import main\nmain()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")
