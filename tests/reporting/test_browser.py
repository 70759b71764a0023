"""A real run's report, opened in headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.io.atomic import write_json
from rldistill.policies.network import NetworkPolicy
from rldistill.reporting.compare_runs import compare_runs
from rldistill.reporting.page import write_run_comparison
from rldistill.students.storage import save_policy

from .browser import CHROMIUM, Browser, browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt install chromium)")

LONG = "a-tree-with-a-name-that-has-no-room-on-a-phone"
WINDOWS = [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")]
DRAWN = """
[...document.querySelectorAll('svg.chart, img, video')].map(each => {
  const box = each.getBoundingClientRect();
  const inside = [...each.querySelectorAll('circle, line, polyline, polygon, text')].map(part => part.outerHTML);
  return [each.closest('section, header').id, each.tagName, box.width, box.height, inside.length, inside.join(' ')];
})
"""
PLAYED = """
(async () => {
  const played = [];
  for (const film of document.querySelectorAll('video')) {  // one by one, since pairs play together
    await film.play();
    while (film.currentTime <= 0) await new Promise(then => setTimeout(then, 10));
    film.pause();
    played.push([film.duration, film.videoWidth, film.error && film.error.message]);
  }
  return played;
})()
"""
TOGETHER = """
(async () => {
  const films = [...document.querySelectorAll('.playing video')];
  const [leader, other] = films.toSorted((one, two) => two.duration - one.duration);
  const until = async (step, holds) => {
    for (let n = 0; !holds(); n++) {
      if (n > 1000) throw new Error(step + films.map(each => ' ' + each.currentTime));
      await new Promise(then => setTimeout(then, 10));
    }
  };
  films.forEach(film => { film.playbackRate = 0.1; });
  const bottom = Math.max(...films.map(film => film.getBoundingClientRect().bottom + scrollY));
  await until('played', () => films.every(film => film.currentTime > 0) && !leader.ended);
  leader.pause();
  await until('paused', () => other.paused);
  leader.currentTime = 0.05;
  await until('moved', () => Math.abs(other.currentTime - 0.05) <= 0.2);
  await leader.play();
  await until('went on', () => films.every(film => !film.paused || film.ended));
  leader.currentTime = leader.duration;
  await until('began again', () => films.every(film => film.currentTime < 0.2 && !film.paused));
  return bottom;
})()
"""
UNREACHABLE = """
[...document.querySelectorAll('body *')].filter(each =>
  each.scrollWidth > each.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(each).overflowX)
  && each.tabIndex !== 0).map(each => each.outerHTML.slice(0, 80))
"""
A4_WIDTH = 718
"""A4 in CSS pixels, without margins of 1 cm."""
CONTRAST = """
['.verdict', 'section .soft', 'dt', 'figcaption', 'a'].map(which => {
  const each = document.querySelector(which);
  let behind = each;
  while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
  return [getComputedStyle(each).color, getComputedStyle(behind).backgroundColor];
})
"""


CUT_OFF = """
[...document.querySelectorAll('main *')].filter(each => each.checkVisibility() && each.clientWidth
  && each.scrollWidth > each.clientWidth + 1 && !each.closest('svg')).map(each => each.outerHTML.slice(0, 120))
"""
MOVING = """
[...document.querySelectorAll('*')].filter(each => {
  const style = getComputedStyle(each);
  return style.animationName !== 'none' || style.transitionDuration !== '0s' || style.scrollBehavior === 'smooth'
    || each.autoplay || each.paused === false;
}).length
"""
AXE = """
axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}).then(
  found => found.violations.map(each => [each.id, each.nodes.length, each.nodes[0].failureSummary, each.nodes[0].html]))
"""


@pytest.fixture(scope="module")
def page(teacher: NetworkPolicy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("run")
    save_policy(teacher, folder / "teacher", {})
    document = {
        "env": {"id": "CartPole-v1", "kwargs": {"max_episode_steps": 30}},
        "teacher": str(folder / "teacher"),
        "collect": {"steps": 1_000, "epsilon": 0.2},
        "distill": {"epochs": 15, "batch_size": 64},
        "students": {LONG: {"type": "tree"}, "mlp": {"type": "mlp", "hidden": [16]}},
        "seeds": [0, 1],
        "evaluate": {"episodes": 4, "robustness": {"episodes": 1}},
        "out": str(folder / "run"),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(app, ["run", str(folder / "run.yaml"), "--quiet"])
    assert result.exit_code == 0, result.output
    report = folder / "run" / "report.html"
    assert report.stat().st_size <= 10_000_000
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(report.as_uri())
        yield opened


def test_page_has_no_requests_and_no_errors(page: Browser) -> None:
    assert page.errors == []
    first, *others = page.requests
    assert first.startswith("file:")
    assert all(url.startswith(("data:", first)) for url in others)


def test_every_section_is_there_and_every_figure_is_drawn(page: Browser) -> None:
    sections = page.ask("[...document.querySelectorAll('section')].map(each => each.id)")
    everything = [
        "compared",
        "front",
        "returns",
        "learning",
        "fidelity",
        "robustness",
        "episodes",
        "interpretable",
        "reproduce",
    ]
    assert sections == everything
    figures = page.ask(DRAWN)
    for section, tag, width, height, inside, text in figures:
        assert width > 100, (section, tag)
        assert height > 60, (section, tag)
        assert tag != "svg" or inside > 10, section
        assert not re.search("NaN|Infinity|undefined", text)
    # returns and profiles; held-out loss and agreement; best, median and worst of two students, and their teacher's
    drawn = [(section, tag) for section, tag, *_ in figures]
    assert drawn.count(("returns", "svg")) == drawn.count(("learning", "svg")) == 2
    assert drawn.count(("front", "svg")) == 1
    # two students beside their teacher, the teacher and random play; the best student's median is on the first screen
    assert drawn.count(("episodes", "VIDEO")) == (2 * 2 + 1 + 1) * 3 - 2
    assert drawn.count(("", "VIDEO")) == 2


def test_its_films_play(page: Browser) -> None:
    for duration, width, error in page.ask(PLAYED):
        assert error is None
        assert 0.1 < duration <= 31 / 30 + 0.1  # at most 30 steps and the picture before them, at 30 a second
        assert width == 600


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_it_fits_every_window_in_both_colour_schemes(page: Browser, width: int, scheme: str) -> None:
    page.look(width, scheme=scheme)
    page.ask("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("window.innerWidth") == width
    assert page.ask(UNREACHABLE) == []
    for text, behind in page.ask(CONTRAST):
        assert contrast(text, behind) >= 4.5
        assert (luminance(behind) < 0.2) == (scheme == "dark")


def test_the_keyboard_gets_around(page: Browser) -> None:
    page.ask("document.activeElement.blur(); window.scrollTo(0, 0)")
    page.press("Tab")
    assert page.ask("document.activeElement.className") == "skip"
    assert page.ask("document.activeElement.getBoundingClientRect().left") >= 0
    page.press("Tab")
    assert page.ask("document.activeElement.tagName") == "VIDEO"
    for _ in range(20):  # the controls of two films
        if page.ask("document.activeElement.tagName") != "VIDEO":
            break
        page.press("Tab")
    assert page.ask("document.activeElement.getAttribute('href')") == "#compared"
    assert page.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_axe_finds_no_violation(page: Browser, axe: str, width: int, scheme: str) -> None:
    page.look(width, scheme=scheme)
    page.ask("document.querySelectorAll('details').forEach(each => { each.open = true })")
    page.ask(f"{axe}; 0")
    assert page.ask(AXE) == []


def test_comparison_of_runs_fits_and_axe_finds_no_violation(
    evaluation: dict[str, Any], axe: str, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        write_json(tmp_path / name / "evaluation.json", evaluation)
        (tmp_path / name / "config.yaml").write_text(f"seed: {len(name)}")
    path = tmp_path / "compared.html"
    write_run_comparison(compare_runs([tmp_path / "first", tmp_path / "second"]), path)
    with browser(tmp_path / "profile") as opened:
        opened.open(path.as_uri())
        for width, scheme in WINDOWS:
            opened.look(width, scheme=scheme)
            opened.ask(f"{axe}; 0")
            assert opened.ask(AXE) == []
            assert opened.ask("document.documentElement.scrollWidth") <= width
        opened.look(A4_WIDTH, media="print")
        assert opened.ask(CUT_OFF) == []
        assert opened.errors == []


def test_nothing_is_cut_off_on_paper(page: Browser) -> None:
    page.look(A4_WIDTH, scheme="dark", media="print")
    page.ask("document.querySelectorAll('details').forEach(each => { each.open = false })")
    assert page.ask(CUT_OFF) == []
    assert page.ask("getComputedStyle(document.querySelector('.verdict')).color") == "rgb(27, 34, 48)"
    assert not page.ask("[...document.querySelectorAll('nav, video')].some(each => each.checkVisibility())")
    text = page.ask("document.querySelector('details pre').checkVisibility({contentVisibilityAuto: true})")
    assert text
    page.look(1200)


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)])
def test_student_and_teacher_play_together_on_the_first_screen(page: Browser, width: int, height: int) -> None:
    page.look(width, height)
    page.open(page.requests[0])
    assert page.ask(TOGETHER) <= height


def test_nothing_moves_for_readers_who_prefer_less_motion(page: Browser) -> None:
    page.look(1200, motion="reduce")
    page.open(page.requests[0])
    assert page.ask(MOVING) == 0


def luminance(colour: str) -> float:
    """WCAG 2.2, of `rgb(r, g, b)`."""
    parts = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2.2: 1 for equal colours, 21 for black and white."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
