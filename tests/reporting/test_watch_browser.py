"""The page of `rldistill watch` in headless Chromium, while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rldistill.io.atomic import write_json
from rldistill.io.lock import lock_folder
from rldistill.io.metrics import Metrics
from rldistill.io.progress import track
from rldistill.io.progress_file import record_progress

from .. import commands
from .browser import CHROMIUM, Browser, browser
from .test_browser import AXE, MOVING, UNREACHABLE, WINDOWS
from .test_watch import EPOCHS, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt install chromium)"),
]

TEXT = "document.querySelector('#run-0-{}').innerText"


def wait_for(opened: Browser, is_true: Callable[[Any], bool], script: str) -> Any:
    until = time.monotonic() + 30
    while not is_true(value := opened.ask(script)):
        assert time.monotonic() < until, value
        time.sleep(0.05)
    return value


@pytest.fixture
def runs(tmp_path: Path, evaluation: dict[str, Any]) -> list[Path]:
    """Return two runs: one that is in its distillation, and one that is evaluated."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        write_json(folder / "provenance.json", {"versions": {}})
        for seed in (0, 1):
            Metrics(folder / f"students/small-mlp/seed-{seed}").write(EPOCHS, ended=False)
    write_json(folders[1] / "evaluation.json", evaluation)
    return folders


def test_page_follows_a_run_and_keeps_the_focus(runs: list[Path], axe: str, tmp_path: Path) -> None:
    with serving(*runs) as server, browser(tmp_path / "profile") as opened:
        with lock_folder(runs[0]), record_progress(runs[0]), track("distill", "epochs", quiet=True) as report:
            report.update(3, 8)
            opened.open(server.url)
            wait_for(opened, lambda text: text == "Running: distill", "document.querySelector('.headline').innerText")
            assert opened.ask("document.querySelector('progress').value") == 3
            for width, scheme in WINDOWS:
                opened.look(width, scheme=scheme)
                opened.ask(f"{axe}; 0")
                assert opened.ask(AXE) == []
                assert opened.ask(UNREACHABLE) == []
                assert opened.ask("document.documentElement.scrollWidth") <= width
            opened.look(1200)
            columns = "[...document.querySelectorAll('.runs > section')].map(each => each.getBoundingClientRect().top)"
            assert len({*opened.ask(columns)}) == 1  # side by side
            time.sleep(1)  # until the file may be written again
            report.update(7, 8)
            wait_for(opened, lambda value: value == 7, "document.querySelector('progress').value")
        wait_for(opened, lambda text: text.startswith("Finished after"), TEXT.format("state"))
        assert opened.ask("document.querySelector('progress')") is None
        opened.ask("document.querySelector('#run-0-log [tabindex]').focus()")
        with lock_folder(runs[0]), record_progress(runs[0]), track("evaluate", "episodes", quiet=True) as report:
            report.update(2, 2)
            wait_for(opened, lambda text: "evaluate: 2/2 episodes" in text, TEXT.format("log"))
            assert opened.ask("document.activeElement.getAttribute('aria-label')") == "Log of first"
        charts = opened.ask(
            "[...document.querySelectorAll('svg.chart')].map(each => each.getBoundingClientRect().width)"
        )
        assert len(charts) == 4  # loss and agreement of two runs
        assert min(charts) > 100
        assert "small-mlp" in opened.ask("document.querySelector('#run-1-evaluation table').innerText")
        assert opened.ask(MOVING) == 0
        assert opened.errors == []  # such as violations of the content security policy
        assert all(url.startswith(server.url) for url in opened.requests)


def test_page_shows_that_its_server_has_ended(runs: list[Path], tmp_path: Path) -> None:
    process = commands.start("watch", *map(str, runs), "--no-browser", stdout=str(tmp_path / "out"))
    try:
        while not (tmp_path / "out").exists() or "\n" not in (tmp_path / "out").read_text():
            time.sleep(0.05)
        with browser(tmp_path / "profile") as opened:
            opened.open((tmp_path / "out").read_text().split()[1])
            assert "Not running" in opened.ask(TEXT.format("state"))
            assert opened.ask("document.querySelector('#offline').checkVisibility()") is False
            process.kill()
            wait_for(opened, bool, "document.querySelector('#offline').checkVisibility()")
    finally:
        process.kill()
        process.join()
