from __future__ import annotations

import pytest

from rldistill.io import progress
from rldistill.io.progress import _rate, note_score


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_tell_the_rate_since_this_start(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("collect", "steps") as report:
        report(1_000, 2_000)  # a resumed task begins here
        clock[0] += 30
        report(1_300, 2_000)  # 300 in 30 s: 10/s, 70 s for the other 700
        clock[0] += 70
        report(2_000, 2_000)
        report(2_010, 2_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["collect: 1,300/2,000 steps (10 steps/s, 70 s left)", "collect: 2,000/2,000 steps (10 steps/s)"]


def test_what_is_slow_tells_how_long_one_takes(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("distil", "epochs") as report:
        clock[0] += 30
        report(0, 4)
        clock[0] += 50
        report(2, 4)  # 2 in 50 s
    assert capsys.readouterr().err.splitlines() == ["distil: 0/4 epochs", "distil: 2/4 epochs (25 s each, 50 s left)"]


def test_what_is_quick_or_quiet_prints_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("collect", "steps") as report:
        report(2_000, 2_000)
    with progress.track("collect", "steps", quiet=True) as report:
        clock[0] += 99
        report(2_000, 2_000)
    assert capsys.readouterr().err == ""


def test_reports_in_one_moment_have_no_rate() -> None:
    rate_of = _rate()
    assert rate_of(3_000) == 0
    assert rate_of(6_000) == 0


def test_the_score_so_far_is_shown_once_it_is_known(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.track("learn", "steps") as report:
        note_score(report, None)
        clock[0] += 30
        report(0, 40)
        note_score(report, 123.456)
        clock[0] += 30
        report(30, 40)
    note_score(lambda done, total: None, 1.0)  # a function of the user's own is told nothing, and need not know
    assert capsys.readouterr().err.splitlines() == [
        "learn: 0/40 steps",
        "learn: 30/40 steps (1 steps/s, 10 s left, score 123.5)",
    ]
