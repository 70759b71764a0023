"""State of runs, the local page and the terminal: made by hand, hostile, and of a run that is killed."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.core.errors import ConfigError
from rldistill.io.atomic import seal, write_json
from rldistill.io.lock import lock_folder
from rldistill.io.metrics import Metrics
from rldistill.io.progress import track
from rldistill.io.progress_file import FILE, record_progress
from rldistill.reporting import watch, watch_page
from rldistill.reporting.sections import MAX_POINTS, thinned
from rldistill.reporting.watch import RunReader, open_runs
from rldistill.reporting.watch_page import WatchServer

from .. import commands

EPOCHS = [{"step": 10 * k, "epoch": k, "heldout_loss": 1 / k, "agreement": 1 - 1 / (k + 1)} for k in range(1, 9)]
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e[/bold][link=file:///]"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a run with two training seeds of a student, which is in its distillation."""
    folder = tmp_path / "run"
    write_json(folder / "provenance.json", {"versions": {}, "command": ["rldistill", "run", "x.yaml"]})
    (folder / "config.yaml").write_text("students: {mlp: {type: mlp}, tree: {type: tree}}\nseeds: [0, 1]\n")
    for seed, rows in ((0, EPOCHS), (1, EPOCHS[:4])):
        (folder / f"students/mlp/seed-{seed}").mkdir(parents=True)
        Metrics(folder / f"students/mlp/seed-{seed}").write(rows, ended=False)
    (folder / "students/mlp/seed-0/policy.json").touch()
    return folder


@contextmanager
def at_work(run: Path) -> Iterator[None]:
    with lock_folder(run), record_progress(run), track("distill mlp, seed 1", "epochs", quiet=True) as report:
        report.update(4, 8)
        yield


def test_state_of_a_run_that_goes_on_was_killed_and_has_finished(run: Path) -> None:
    reader = RunReader(run)
    assert (reader.status().state, reader.status().headline) == ("idle", "Not running")
    with at_work(run):
        status = reader.status()
        assert (status.state, status.headline) == ("running", "Running: distill mlp, seed 1")
        assert [watch.task_text(task) for task in status.tasks] == ["4/8 epochs"]
        assert [*status.stages] == [("students", "1 of 4"), ("evaluation", "not yet"), ("report", "not yet")]
        (loss, agreement) = status.curves
        assert loss.means["mlp"] == [(k, pytest.approx(1 / k)) for k in range(1, 9)]
        assert [len(line) for line in agreement.seeds["mlp"]] == [8, 4]
        record = (run / FILE).read_bytes()
    assert reader.status().headline.startswith("Finished after ")
    (run / FILE).write_bytes(record)  # as a kill leaves it
    status = reader.status()
    assert (status.state, status.headline) == ("stopped", "Stopped at distill mlp, seed 1: 4 of 8 epochs")
    assert status.step == ("Continue", f"rldistill run {run}/config.yaml --resume")
    assert not status.tasks
    with pytest.raises(ValueError, match="broken"), at_work(run):
        raise ValueError("broken")
    status = reader.status()
    assert (status.state, status.log[-1][1]) == ("failed", "error: broken")


def test_verb_of_the_next_command_is_that_of_the_run(run: Path) -> None:
    with suppress(KeyboardInterrupt), at_work(run):
        raise KeyboardInterrupt
    for verb, expected in (("search", "search"), ("train", "train"), ("demo", "run"), ("$(reboot)", "run")):
        write_json(run / "provenance.json", {"versions": {}, "command": ["rldistill", verb]})
        step = RunReader(run).status().step
        assert step is not None
        assert step[1] == f"rldistill {expected} {run}/config.yaml --resume"


def test_run_of_another_machine_counts_as_running_for_a_minute(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_work(run):
        record = (run / FILE).read_bytes()
    (run / FILE).write_bytes(record)
    (run / ".lock").write_text("another-machine, process 7")
    assert RunReader(run).status().state == "running"
    now = time.time()
    monkeypatch.setattr(watch.time, "time", lambda: now + 120)
    assert RunReader(run).status().state == "stopped"


def test_evaluation_and_the_next_step_are_shown(run: Path, evaluation: dict[str, Any]) -> None:
    write_json(run / "evaluation.json", evaluation)
    status = RunReader(run).status()
    assert status.verdict.startswith("The student small-mlp reaches 90.0%")
    assert [row[0].text for row in status.rows] == ["teacher", "small-mlp", "wide", "random"]
    assert ("evaluation", "done") in [*status.stages]
    assert status.evaluated == "Latest evaluation"
    os.utime(run / "evaluation.json", (0, 0))
    with at_work(run):  # with --overwrite, as long as the evaluation is not repeated
        status = RunReader(run).status()
    assert ("evaluation", "of an earlier run") in [*status.stages]
    assert status.evaluated == "Earlier evaluation"


def test_only_the_end_of_a_large_file_is_read_and_only_after_a_change(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics(run / "students/mlp/seed-0")
    rows = [{"step": k, "return": float(k)} for k in range(3_000)]
    metrics.write(rows, ended=False)
    assert metrics.path.stat().st_size > 2 * watch.TAIL_BYTES
    reads, read_tail = list[int](), watch.read_tail

    def counted(path: Path, root: Path, max_bytes: int) -> bytes:
        content = read_tail(path, root, max_bytes)
        reads.append(len(content))
        return content

    monkeypatch.setattr(watch, "read_tail", counted)
    reader = RunReader(run)
    line = reader.status().curves[-1].means["mlp"]
    assert line[-1] == (2_999, 2_999.0)
    assert 0 < line[0][0] < 2_999
    assert len(line) <= MAX_POINTS + 1
    assert max(reads) <= watch.TAIL_BYTES
    before = len(reads)
    reader.status()
    assert len(reads) == before
    with metrics.path.open("ab") as file:
        file.write(b'{"cut')  # a row that is being written
    assert reader.status().curves[-1].means["mlp"] == line
    assert len(reads) == before + 1


def test_thinned_lines_keep_their_end() -> None:
    line = [(float(k), 0.0) for k in range(4 * MAX_POINTS + 3)]
    short = thinned(line)
    assert short[-1] == line[-1]
    assert short[:3] == [(0, 0), (5, 0), (10, 0)]
    assert len({*short}) == len(short) <= MAX_POINTS + 1
    assert thinned(line[:MAX_POINTS]) == line[:MAX_POINTS]


def test_folders_that_are_no_runs_are_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folders, words in (
        (["none"], "there is no such folder"),
        (["run/config.yaml"], "a file, expected the folder of a run"),
        (["empty"], "not the folder of a run"),
        (["run", "run"], "expected different runs"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_runs([tmp_path / folder for folder in folders])
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "none"), "--text"])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["pipe", "device", "secret", "holes", "text", "numbers", "lists"])
def test_hostile_files_are_named_and_the_rest_is_shown(run: Path, kind: str, evaluation: dict[str, Any]) -> None:
    path = run / "students/mlp/seed-0/metrics.jsonl"
    huge = [{"step": 10**300 * k, "epoch": k, "heldout_loss": 1e308 * (-1) ** k} for k in range(3)]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "holes":
        with path.open("wb") as file:
            file.truncate(20 << 30)
    elif kind in ("text", "numbers", "lists"):
        rows = {"text": b"x" * 300_000, "lists": b'{"sha256": 1, "step": []}\n' + b"[" * 100_000}
        path.write_bytes(rows.get(kind, b""))
        if kind == "numbers":
            path.write_bytes(b"".join(seal(row, None) for row in huge))
    else:
        path.symlink_to({"device": "/dev/zero", "secret": "/etc/passwd"}[kind])
    write_json(run / "evaluation.json", evaluation)
    status = RunReader(run).status()
    assert status.rows
    assert [text.startswith(str(path)) for text in status.problems] == [True] * (
        kind in ("pipe", "device", "secret", "holes")
    )
    with serving(run) as server:
        assert "The student small-mlp" in get(server, "")[1]


def test_texts_of_files_are_escaped(run: Path) -> None:
    hostile = run.with_name("run & <b>")
    run.rename(hostile)
    (hostile / "students" / "mlp").rename(hostile / "students" / "<i>mlp")
    with record_progress(hostile), track(HOSTILE, HOSTILE, quiet=True) as report, lock_folder(hostile):
        report.update(1, 2)
        with serving(hostile) as server:
            page = get(server, "")[1]
        text = CliRunner().invoke(app, ["watch", str(hostile), "--text"]).stdout
    assert "&lt;script&gt;alert(1)" in page
    assert "run &amp; &lt;b&gt;" in page
    assert "&lt;i&gt;mlp" in page
    assert not {"<script>alert", "<i>", "<b>"} & {part for part in ("<script>alert", "<i>", "<b>") if part in page}
    assert "Running: <script>alert(1)</script>" in text
    assert all(line.isprintable() for line in text.splitlines())


@contextmanager
def serving(*runs: Path) -> Iterator[WatchServer]:
    with WatchServer(open_runs(runs)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def request(server: WatchServer, path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    return connection.getresponse()


def get(server: WatchServer, name: str) -> tuple[http.client.HTTPResponse, str]:
    with request(server, f"/{server.token}/{name}") as response:
        return response, response.read().decode()


def test_page_its_style_and_its_script_have_a_strict_policy(run: Path) -> None:
    with serving(run) as server:
        assert server.server_address[0] == "127.0.0.1"
        for name, kind in (("", "text/html"), ("watch.css", "text/css"), ("watch.js", "text/javascript")):
            response, text = get(server, name)
            assert response.status == 200
            assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
            policy = response.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; ")
            assert "unsafe" not in policy
            assert "style=" not in text
            assert "<style" not in text
            assert response.headers["Referrer-Policy"] == "no-referrer"
        page = get(server, "")[1]
        assert page.count("<script") == 1
        assert "http://" not in page.replace(server.url, "")


def test_other_hosts_tokens_paths_and_methods_are_refused(run: Path) -> None:
    with serving(run) as server:
        good, port = f"/{server.token}/", server.server_port
        for host in ("localhost", f"localhost:{port}", "127.0.0.1:8080"):  # 8080: a forwarded port
            assert request(server, good, Host=host).status == 200
        for host in (
            "",
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "localhost:x",
            "[",
            "127.0.0.1@evil",
        ):
            assert request(server, good, Host=host).status == 403, host
        for path in ("/", "//", "/wrong/", good[:-2] + "/", f"/x{good}", "/%00/", "/%C3%A9/"):
            assert request(server, path).status == 403, path
        for name in (
            "config.yaml",
            "../config.yaml",
            "..%2fconfig.yaml",
            "/etc/passwd",
            "watch.html.jinja",
            "style.css",
        ):
            response = request(server, good + name)
            assert response.status == 404, name
            assert response.read() == b"There is no such page."
        for method in ("POST", "PUT", "OPTIONS", "TRACE"):
            assert request(server, good, method).status == 501
        assert request(server, f"{good}?x=1").status == 200


def test_events_have_the_parts_that_changed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_page, "REFRESH_S", 0.02)
    with serving(run) as server, request(server, f"/{server.token}/events") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        first = json.loads(response.readline().decode().removeprefix("data: "))
        assert {*first} == {f"run-0-{part}" for part in watch_page.PARTS}
        assert "Not running" in first["run-0-state"]
        with at_work(run):
            lines = iter(response.readline, b"")
            changed = next(json.loads(line[6:]) for line in lines if line.startswith(b"data: "))
        assert "run-0-curves" not in changed
        assert 'value="4"' in changed["run-0-tasks"]


def test_tokens_are_long_and_differ(run: Path) -> None:
    with WatchServer(open_runs([run])) as server, WatchServer(open_runs([run])) as other:
        assert len(server.token) >= 32
        assert other.token != server.token


def test_used_port_is_refused_in_one_line(run: Path) -> None:
    with serving(run) as server:
        port = str(server.server_port)
        result = CliRunner().invoke(app, ["watch", str(run), "--port", port, "--no-browser"])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: --port: {port} cannot be used")
        assert result.stderr.count("\n") == 1
        assert os.strerror(errno.EADDRINUSE) in result.stderr


def test_runs_stand_side_by_side_under_names_that_differ(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "run"
    other.parent.mkdir()
    other.symlink_to(run.rename(tmp_path / "moved"))
    twin = tmp_path / "twins" / "moved"
    write_json(twin / "provenance.json", {"versions": {}})
    with serving(tmp_path / "moved", twin) as server:
        assert server.names == [str(tmp_path / "moved"), str(twin)]
        page = get(server, "")[1]
        assert 'id="run-0-curves"' in page
        assert 'id="run-1-log"' in page
    with serving(twin) as server:
        assert server.names == ["moved"]


def test_broken_run_does_not_end_the_page_of_another(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "other" / "provenance.json", {"versions": {}})
    status = RunReader.status
    broken = lambda self: 1 / 0 if self.run.name == "other" else status(self)  # noqa: E731
    monkeypatch.setattr(RunReader, "status", broken)
    with serving(tmp_path / "other", run) as server:
        page = get(server, "")[1]
    assert "Its files cannot be shown (division by zero)." in page
    assert "Not running" in page


@pytest.mark.slow
def test_terminal_shows_a_killed_run_and_its_next_command(tmp_path: Path) -> None:
    document = {
        "env": {"id": "CartPole-v1"},
        "teacher": "zoo:cartpole-ppo",
        "collect": {"steps": 400},
        "distill": {"epochs": 1_000_000, "patience": 0},
        "students": {"mlp": {"type": "mlp", "hidden": [8]}},
        "out": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(json.dumps(document))
    process = commands.start("run", str(tmp_path / "run.yaml"), "--quiet")
    try:
        reader = None
        until = time.monotonic() + 120
        while reader is None or not any(
            task.title.startswith("distill") and task.done for task in reader.status().tasks
        ):
            assert time.monotonic() < until
            time.sleep(0.1)
            if reader is None and (tmp_path / "run" / "provenance.json").exists():
                reader = RunReader(tmp_path / "run")
        assert reader.status().headline == "Running: distill mlp, seed 0"
        assert reader.status().curves
    finally:
        process.kill()
        process.join()
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "run"), "--text"])
    assert result.exit_code == 0
    text = result.stdout.replace("\n", "")
    assert "Stopped at distill mlp, seed 0" in text
    assert f"rldistill run {tmp_path}/run/config.yaml --resume" in text.replace("  ", "")


def test_token_is_no_argument_of_the_browser(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def open_browser(url: str) -> bool:
        assert url.startswith("file:")
        page = Path(url.removeprefix("file://"))
        address = re.search(r'content="0; url=(http://127\.0\.0\.1:\d+/(\S{32})/)"', page.read_text())
        assert address
        assert address[2] not in url
        assert page.parent.stat().st_mode & 0o077 == 0
        opened.append(page)
        return True

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", open_browser)
    monkeypatch.setattr(WatchServer, "serve_forever", lambda server: None)
    monkeypatch.setattr("platform.release", lambda: "6.1.0")
    assert CliRunner().invoke(app, ["watch", str(run)]).exit_code == 0
    assert len(opened) == 1
    assert not opened[0].parent.exists()
    monkeypatch.setattr("tempfile.TemporaryDirectory", Mock(side_effect=FileNotFoundError))
    result = CliRunner().invoke(app, ["watch", str(run)])
    assert (result.exit_code, len(opened)) == (0, 1)
    assert "from another machine: ssh" in result.stdout


@pytest.mark.slow
def test_interrupted_page_ends_in_one_line(run: Path, tmp_path: Path) -> None:
    process = commands.start(
        "watch", str(run), "--no-browser", stdout=str(tmp_path / "out"), stderr=str(tmp_path / "err"),
        before="import os; os.environ['SSH_CONNECTION'] = '10.0.0.1 5000 10.0.0.2 22'",
    )  # fmt: skip
    while not (tmp_path / "out").exists() or (tmp_path / "out").read_text().count("\n") < 2:
        time.sleep(0.05)
    address, forward = (tmp_path / "out").read_text().splitlines()
    port = int(address.partition("127.0.0.1:")[2].partition("/")[0])
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in forward
    assert "@10.0.0.2, then" in forward
    assert process.pid is not None
    os.kill(process.pid, 2)
    process.join()
    assert process.exitcode == 130
    assert (tmp_path / "err").read_text() == "stopped\n"
