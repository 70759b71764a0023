"""Jobs in this process and in others: results, units of work, errors, and workers that are killed."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

import rldistill
from rldistill.core.errors import ConfigError, RLDistillError
from rldistill.io.execution import Execution, Total, run_jobs
from rldistill.io.processes import SERVER, START_METHOD, UNGUARDED, prepare_workers

from ..conftest import Reports

HERE = Path(__file__).parent
TWO = Execution(workers=2)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Module of the work under a name that other processes can import."""
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module("jobs")


def test_jobs_in_this_process_take_one_item_after_another(jobs: Any) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(3):
            taken.append(item)
            yield item

    results = run_jobs(jobs.square, items(), Execution())
    assert next(results) == (0, 0)
    assert taken == [0]
    assert [*results] == [(1, 1), (2, 4)]


def test_total_adds_the_units_of_all_jobs(jobs: Any) -> None:
    shown: list[tuple[int, int]] = []
    total = Total(Reports(lambda done, total: shown.append((done, total))), 10)
    assert [*run_jobs(jobs.square, [1, 2, 3], Execution(), total)] == [(0, 1), (1, 4), (2, 9)]
    assert shown == [(1, 10), (3, 10), (6, 10)]


@pytest.mark.slow
def test_results_come_as_they_finish_from_as_many_processes(jobs: Any) -> None:
    results = [*run_jobs(jobs.sleep_and_tell, [0, 2], TWO)]
    assert sorted((number, item) for number, (item, _) in results) == [(0, 0), (1, 2)]
    pids = {pid for _, (_, pid) in results}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.slow
def test_job_of_a_killed_worker_runs_again_and_its_units_count_once(jobs: Any, tmp_path: Path) -> None:
    units: list[int] = []
    work = partial(jobs.killed, str(tmp_path), 1)
    with pytest.warns(UserWarning, match=r"execution\.workers: worker \d+ was killed; a new one goes on with its job"):
        results = [*run_jobs(work, range(3), TWO, lambda done, _: units.append(done))]
    assert sorted(results) == [(0, 0), (1, 1), (2, 2)]
    assert sum(units) == 3
    assert (tmp_path / "1").read_text() == "xx"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:execution")
def test_job_whose_workers_are_killed_again_and_again_ends_in_one_line(jobs: Any, tmp_path: Path) -> None:
    work = partial(jobs.killed, str(tmp_path), 99)
    with pytest.raises(ConfigError, match=r"^execution\.workers: a worker was killed 4 times in the same job, [^\n]*$"):
        [*run_jobs(work, [1], TWO)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("own", ConfigError, "here: wrong. Do it again."),
        ("system", OSError, "No space left"),
        ("unreadable", RLDistillError, r"fail failed: Unreadable: 1 and 2 \(.*jobs.py, line \d+\)\."),
    ],
)
def test_errors_of_jobs_are_raised_here(jobs: Any, kind: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        [*run_jobs(partial(jobs.fail, kind), [0], TWO)]


@pytest.mark.slow
def test_work_may_be_a_function_within_a_function() -> None:
    added = 3
    assert sorted(run_jobs(lambda item, report: item + added, [0, 5], TWO)) == [(0, 3), (1, 8)]


def test_work_that_cannot_be_pickled_is_refused() -> None:
    items = (item for item in range(3))
    with pytest.raises(
        ConfigError, match=r"^execution\.workers: .* sent to other processes .*generator.* one worker\.$"
    ):
        [*run_jobs(lambda item, report: next(items), [0], TWO)]
    assert UNGUARDED.endswith("use one worker.")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_workers_know_answers_and_variables_and_outlive_their_server(
    jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = partial(jobs.surroundings, str(tmp_path))
    for value in ("first", "second"):  # the server has started before the second
        monkeypatch.setenv("RLDISTILL_TEST", value)
        assert jobs.slow_answer(str(tmp_path)) == 42
        answers = run_jobs(work, range(3), TWO)
        assert next(answers)[1] == (42, value)
        os.kill(server := forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
        while is_running(server):
            time.sleep(0.01)
        assert [answer for _, answer in answers] == [(42, value)] * 2
    assert [file.name for file in tmp_path.iterdir()] == [f"computed-{os.getpid()}"]


def test_workers_wait_for_the_end_of_a_killed_server(
    jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sockets are closed before its last thread has ended, and until then it counts as running."""
    connect, refused = forkserver._forkserver.connect_to_new_process, [True, True]

    def connect_later(files: Any) -> Any:
        if refused:
            refused.pop()
            raise ConnectionRefusedError
        return connect(files)

    monkeypatch.setattr(forkserver._forkserver, "connect_to_new_process", connect_later)
    monkeypatch.setattr(forkserver, "connect_to_new_process", connect_later)
    assert [answer for _, answer in run_jobs(partial(jobs.surroundings, str(tmp_path)), range(1), TWO)]
    assert not refused


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_main_process(tmp_path: Path, stop: signal.Signals) -> None:
    """The signal reaches the main process alone, as that of a scheduler."""
    program = (
        "import signal, jobs\nfrom functools import partial\nfrom rldistill.io.execution import Execution, run_jobs\n"
        "if __name__ == '__main__':\n"
        "    for stop in (signal.SIGINT, signal.SIGTERM):\n"  # a shell ignores SIGINT in background jobs
        "        signal.signal(stop, signal.default_int_handler)\n"
        f"    [*run_jobs(partial(jobs.wait_for_ever, {str(tmp_path)!r}), range(2), Execution(workers=2))]\n"
    )
    (tmp_path / "program.py").write_text(program)
    path = os.pathsep.join([str(Path(rldistill.__file__).parents[1]), str(HERE)])
    command = [sys.executable, str(tmp_path / "program.py")]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.DEVNULL)
    pids: list[int] = []
    while len(pids) < 2:
        assert process.poll() is None
        time.sleep(0.05)
        pids = [int(file.name) for file in tmp_path.iterdir() if file.name.isdecimal()]
    started = time.monotonic()
    process.send_signal(stop)
    process.wait(10)
    while any(map(is_running, pids)):
        time.sleep(0.01)
        assert time.monotonic() - started < 10  # a second without other load


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(START_METHOD != "forkserver", reason="workers are forked on Linux only")
def test_variable_of_the_server_does_not_outlive_a_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(forkserver, "ensure_running", fail)
    with pytest.raises(OSError, match="Too many open files"):
        prepare_workers()
    assert SERVER not in os.environ


@pytest.mark.skipif(START_METHOD != "forkserver", reason="workers are forked on Linux only")
def test_several_threads_can_start_workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = list[str | None]()

    def start_slowly() -> None:
        time.sleep(0.05)
        marks.append(os.environ.get(SERVER))

    monkeypatch.setattr(forkserver, "ensure_running", start_slowly)
    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(prepare_workers) for _ in range(4)]:
            future.result()
    assert marks == ["1"] * 4
    assert SERVER not in os.environ
