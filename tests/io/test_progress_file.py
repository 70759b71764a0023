"""Progress of a run in a file: content, cost, ends, and refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rldistill.core.errors import ConfigError, RLDistillError
from rldistill.io import progress, progress_file
from rldistill.io.atomic import seal
from rldistill.io.progress import is_shown, subtask, track
from rldistill.io.progress_file import (
    FILE,
    MARK,
    ProgressRecord,
    active_file,
    duration_text,
    part_files,
    rate_text,
    record_progress,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / MARK).write_text("{}")
    return tmp_path


def fail(run: Path, error: BaseException) -> None:
    with record_progress(run), track("collect", "steps", quiet=True) as report:
        report.update(0, 10)
        raise error


def read(run: Path, name: str = FILE) -> ProgressRecord:
    return ProgressRecord.read(run / name)


def test_quiet_tasks_are_recorded_with_rate_remaining_time_and_score(
    run: Path, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with record_progress(run), track("distill mlp", "epochs", quiet=True) as report:
        assert not is_shown(report)
        report.update(10, 40)  # a resumed task begins here
        clock[0] += 5
        report.update(np.int64(20), 40, np.float32(0.5))  # type: ignore[arg-type]  # 10 in 5 s: 10 s for the other 20
        found = read(run)
        assert (found.state, found.title, found.done, found.total, found.rate) == ("running", "distill mlp", 20, 40, 2)
        assert (found.seconds_left, found.score, found.unit) == (10, 0.5, "epochs")
        with subtask(report, "collect, round 1", "steps") as shown:
            clock[0] += 5
            shown.update(0, 160, float("nan"))
            assert (read(run).title, read(run).score) == ("collect, round 1", None)
        clock[0] += 10
        report.update(40, 40)
    found = read(run)
    assert (found.state, found.title, found.done) == ("finished", "distill mlp", 40)
    assert [text.partition(" after")[0] for _, text in found.log] == [
        "distill mlp: 40/40 epochs (2 epochs/s)",
        "finished",
    ]
    assert capsys.readouterr().err == ""
    assert active_file() is None
    assert {path.name for path in run.iterdir()} == {FILE, MARK}


def test_file_is_written_once_a_second_and_more_seldom_where_that_takes_long(
    run: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, duration = list[float](), [0.0]

    def slow(value: dict[str, Any], indent: int | None) -> bytes:
        writes.append(clock[0])
        clock[0] += duration[0]
        return seal(value, indent)

    monkeypatch.setattr(progress_file, "seal", slow)
    with record_progress(run), track("collect", "steps", quiet=True) as report:
        for step in range(100):
            report.update(step, 100)
            clock[0] += 0.125
        assert writes == [100 + n for n in range(13)]
        duration[0], clock[0] = 0.5, 200.0  # a write of half a second: the next one after at least 100 s
        writes.clear()
        for step in range(200):
            report.update(step, 200)
            clock[0] += 1
        assert writes == [200.0, 300.5]
        report.update(200, 200)
    assert read(run).done == 200


def test_end_of_a_run_is_recorded_and_a_refused_one_keeps_the_record(run: Path) -> None:
    for error, state, line in (
        (RLDistillError("the teacher broke"), "failed", "error: the teacher broke"),
        (KeyboardInterrupt(), "stopped", "stopped"),
    ):
        with pytest.raises(type(error)):
            fail(run, error)
        assert (read(run).state, read(run).log[-1][1]) == (state, line)
    before = (run / FILE).read_bytes()
    with pytest.raises(ConfigError), record_progress(run):
        raise ConfigError("the folder exists")
    assert (run / FILE).read_bytes() == before


def test_next_task_is_shown_before_its_first_update(run: Path, clock: list[float]) -> None:
    with record_progress(run):
        with track("collect", "steps", quiet=True) as report:
            report.update(10, 10)
        clock[0] += 5
        with track("distill", "fits", quiet=True):
            assert (read(run).title, read(run).done, read(run).total) == ("distill", 0, 0)


def test_folder_that_is_no_run_gets_no_file(tmp_path: Path) -> None:
    with record_progress(tmp_path), track("collect", "steps", quiet=True) as report:
        report.update(0, 10)
    assert not any(tmp_path.iterdir())
    (tmp_path / MARK).touch()
    with record_progress(tmp_path), track("collect", "steps", quiet=True) as report:
        report.update(0, 10)
        assert (tmp_path / FILE).exists()
        (tmp_path / MARK).unlink()  # as after a refusal, which restores the folder
    assert not any(tmp_path.iterdir())


def test_parts_have_their_own_files_until_they_end(run: Path) -> None:
    (run / ".progress.killed-seed-3.json").touch()  # of a worker that was killed
    with record_progress(run):
        assert part_files(run) == []
        with record_progress(run, "mlp-seed-0"), track("distill", "epochs", quiet=True) as report:
            report.update(1, 2)
        assert part_files(run) == []  # in the process of the run
        assert read(run).title == "distill"
    with record_progress(run, "mlp-seed-0"), track("distill mlp", "epochs", quiet=True) as report:
        report.update(1, 2)
        (path,) = part_files(run)
        assert ProgressRecord.read(path).title == "distill mlp"
    assert part_files(run) == []


def test_full_disk_does_not_stop_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with record_progress(run), track("collect", "steps", quiet=True) as report:
        monkeypatch.setattr(Path, "write_bytes", fail)
        report.update(0, 10)
    assert {path.name for path in run.iterdir()} == {MARK}


@pytest.mark.parametrize(
    "change",
    [
        {"state": "gone"},
        {"done": -1},
        {"total": 10**400},
        {"rate": -1.0},
        {"started": 1e300},
        {"log": [[1.0]]},
        {"log": [["now", "text"]]},
        {"title": None},
        {"more": 1},
    ],
)
def test_wrong_content_is_refused_in_one_line(run: Path, change: dict[str, Any]) -> None:
    with record_progress(run), track("collect", "steps", quiet=True) as report:
        report.update(0, 10)
    document = json.loads((run / FILE).read_bytes())
    (run / FILE).write_bytes(seal(document | change, None))
    with pytest.raises(RLDistillError, match=f"^{run / FILE}: ") as error:
        read(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"x" * 300_000, b'{"sha256": "0"}'])
def test_broken_files_are_refused(run: Path, content: bytes) -> None:
    (run / FILE).write_bytes(content)
    with pytest.raises(RLDistillError, match=f"^{run / FILE}: "):
        read(run)
    (run / FILE).unlink()
    os.mkfifo(run / FILE)
    with pytest.raises(RLDistillError, match="not a regular file"):
        read(run)


def test_durations_and_rates_have_the_unit_that_fits() -> None:
    assert [*map(duration_text, (0, 119, 150, 7_100, 12_000, 1e9))] == [
        "0 s", "119 s", "2 min", "118 min", "3 h 20 min", "277,777 h 47 min",
    ]  # fmt: skip
    assert [rate_text(rate, "steps") for rate in (0, 0.1, 1_500)] == ["", "10 s each", "1,500 steps/s"]
