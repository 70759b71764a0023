from __future__ import annotations

import pytest

from rldistill.core.errors import ConfigError
from rldistill.io import progress
from rldistill.io.progress import SILENT, Part, Round, stage_progress, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


class Recorder:
    def __init__(self) -> None:
        self.rows: list[tuple[int, int, float | None]] = []

    def update(self, done: int, total: int, score: float | None = None) -> None:
        self.rows.append((done, total, score))


def test_lines_show_the_rate_since_this_start(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with track("collect", "steps") as report:
        report.update(1_000, 2_000)  # a resumed task begins here
        clock[0] += 30
        report.update(1_300, 2_000)  # 300 in 30 s: 10/s, 70 s for the other 700
        clock[0] += 70
        report.update(2_000, 2_000)
        report.update(2_010, 2_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["collect: 1,300/2,000 steps (10 steps/s, 70 s left)", "collect: 2,000/2,000 steps (10 steps/s)"]


def test_slow_units_show_seconds_per_unit(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with track("distill", "epochs") as report:
        clock[0] += 30
        report.update(0, 4)
        clock[0] += 50
        report.update(2, 4)  # 2 in 50 s
    assert capsys.readouterr().err.splitlines() == ["distill: 0/4 epochs", "distill: 2/4 epochs (25 s each, 50 s left)"]


def test_quick_and_quiet_tasks_print_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with track("collect", "steps") as report:
        report.update(2_000, 2_000)
    with track("collect", "steps", quiet=True) as report:
        clock[0] += 99
        report.update(2_000, 2_000)
    assert capsys.readouterr().err == ""


def test_simultaneous_reports_have_no_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with track("collect", "steps") as report:
        clock[0] += 30
        report.update(3_000, 9_000)
        report.update(9_000, 9_000)
    assert capsys.readouterr().err.splitlines() == ["collect: 3,000/9,000 steps", "collect: 9,000/9,000 steps"]


def test_latest_score_is_shown(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with track("learn", "steps") as report:
        clock[0] += 30
        report.update(0, 40)
        clock[0] += 30
        report.update(30, 40, 123.456)
    assert capsys.readouterr().err.splitlines() == [
        "learn: 0/40 steps",
        "learn: 30/40 steps (1 steps/s, 10 s left, score 123.5)",
    ]


def test_parts_and_rounds_report_to_the_whole_task() -> None:
    task = Recorder()
    Part(task, 10, 100).update(5, 20, 1.0)
    Part(task, 10).update(5, 20)
    Round(task, 2, 4).update(5, 20)
    assert task.rows == [(15, 100, 1.0), (15, 30, None), (45, 80, None)]


@pytest.mark.parametrize(
    ("argument", "terminal", "is_shown"), [(True, True, True), (True, False, True), (False, True, False)]
)
def test_stages_called_from_python_show_progress(
    argument: bool, terminal: bool, is_shown: bool, clock: list[float], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal)
    with stage_progress(argument, "collect", "steps") as report:
        report.update(0, 40)
        assert capsys.readouterr().err == ""  # nothing within the first two seconds
        clock[0] += 30
        report.update(30, 40)
    assert ("collect" in capsys.readouterr().err) == is_shown


def test_progress_of_the_user_is_used_and_anything_else_is_refused() -> None:
    task = Recorder()
    with stage_progress(task, "collect", "steps") as report:
        assert report is task
    with stage_progress(SILENT, "collect", "steps") as report:
        report.update(1, 2)
    with (
        pytest.raises(ConfigError, match=r"^progress: expected True, False or an object with update\(done, total"),
        stage_progress(lambda done, total: None, "collect", "steps"),  # type: ignore[arg-type]
    ):
        pass
