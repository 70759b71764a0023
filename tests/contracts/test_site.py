"""Pages of docs/: code blocks, commands, links and figures hold, and the site is built from them."""

from __future__ import annotations

import inspect
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import rldistill
from rldistill import RLDistillError, read_run
from rldistill.cli.main import app
from rldistill.run.config import parse_value

from .. import commands

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {file.stem: file.read_text(encoding="utf-8") for file in sorted(DOCS.glob("*.md"))}
HOOKS = runpy.run_path(str(DOCS / "hooks.py"))
GUIDES = ("comparison", "index", "recipe", "student")
"""Pages that quote the figures of others."""
BASE = {"env": {"id": "CartPole-v1"}, "teacher": "zoo:cartpole-ppo", "students": {"mlp": {"type": "mlp"}}}
"""Run file that parts of others complete."""
QUICK = ["collect.steps=800", "recipe=offline", "distill.learning_rate=0.01", "seeds=[0]"]
QUICK += ["evaluate={episodes: 2, max_episodes: 4, videos: false}"]
BLOCKS_THAT_RUN = ("environment", "errors", "evaluation", "index", "start", "student", "teacher")
"""Pages whose blocks are run in their order; those of others have tests of their own."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Return language and text of the code blocks of a page."""
    return re.findall(r"```(\w+)\n(.*?)```", PAGES[page], flags=re.DOTALL)


def command_lines(page: str) -> list[str]:
    code = "\n".join(
        [text for _, text in blocks(page)] + re.findall(r"^    rldistill (?:.*\\\n)*.*", PAGES[page], re.M)
    )
    lines = code.replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip().startswith("rldistill ")]


YAML = [
    (page, text)
    for page in PAGES
    if page != "extending"  # test_extending.py runs them
    for language, text in blocks(page)
    if language == "yaml"
]


@pytest.mark.parametrize(("page", "text"), YAML, ids=[page for page, _ in YAML])
def test_yaml_is_a_valid_run_file(page: str, text: str) -> None:
    values = parse_value(text, page)
    missing = {key: value for key, value in BASE.items() if not {"tasks"} & {*values}}
    if "teachers" in values:
        del missing["teacher"]
    read_run(missing | values)


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_their_options(page: str) -> None:
    for line in command_lines(page):
        command, arguments, context = get_command(app), shlex.split(line)[1:], None
        while True:
            context = command.make_context(command.name, arguments, parent=context)
            if not hasattr(command, "resolve_command") or not (rest := [*context._protected_args, *context.args]):
                break
            _, command, arguments = command.resolve_command(context, rest)


@pytest.mark.slow
@pytest.mark.parametrize("page", BLOCKS_THAT_RUN)
def test_blocks_run_in_their_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for language, text in blocks(page):
        name = re.match(r"# (\w+\.\w+)\n", text)
        file = tmp_path / (name[1] if name else f"block.{language}")
        file.write_text(text, encoding="utf-8")
        if language == "python":
            runpy.run_path(str(file), run_name="__main__")
        for line in text.splitlines() if language == "sh" else ():
            arguments = shlex.split(line)[1:]
            done = commands.run(*arguments, *(QUICK if ".yaml" in line else ()), folder=tmp_path)
            assert done.returncode == 0, (line, done.stderr[-2_000:])


def slugs(text: str) -> set[str]:
    """Return the anchors of a page on GitHub."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "file", [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda f: f.stem
)
def test_links_lead_somewhere_on_github(file: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]*))?\)", text):
        path = (file.parent / target) if target else file
        assert path.exists(), target
        if anchor:
            assert anchor in slugs(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


@pytest.mark.parametrize("page", GUIDES)
def test_figures_stand_beside_their_command_elsewhere(page: str) -> None:
    figures = re.findall(r"-?[\d.,]+ \(-?[\d.]+ to -?[\d.]+\)", PAGES[page])
    measured = "\n".join(text for name, text in PAGES.items() if name not in GUIDES)
    assert figures
    # The page may name the gain of a difference, whose sign the results have reversed.
    assert [figure for figure in figures if figure not in measured] in ([], ["53.1 (12.3 to 92.4)"])


def test_each_error_has_its_cause_and_remedy() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGES["errors"], re.M | re.S))
    for name in rldistill.__all__:
        value = getattr(rldistill, name)
        if inspect.isclass(value) and issubclass(value, RLDistillError) and value is not RLDistillError:
            assert "**Cause**" in sections[name]
            assert "**Remedy**" in sections[name]
    assert "RLDistillError" in sections


def test_every_public_name_has_a_place_in_the_reference() -> None:
    listed = re.findall(r"^::: rldistill\.(\w+)$", "\n".join(HOOKS["api_pages"]().values()), re.M)
    assert sorted(listed) == sorted({*rldistill.__all__})


@pytest.mark.parametrize("name", [name for name in rldistill.__all__ if inspect.isclass(getattr(rldistill, name))])
def test_public_methods_are_documented(name: str) -> None:
    cls = getattr(rldistill, name)
    for member, value in inspect.getmembers(cls, lambda v: inspect.isroutine(v) or isinstance(v, property)):
        own = any(parent.__module__.startswith("rldistill.") for parent in cls.__mro__ if member in vars(parent))
        if own and not member.startswith("_"):
            assert inspect.getdoc(value) or inspect.getdoc(getattr(cls, member)), f"{name}.{member}"


@pytest.mark.slow
def test_site_is_built_without_a_warning_or_a_remote_file(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="needs the extra docs")
    site = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(site)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    text = "\n".join(file.read_text(encoding="utf-8") for file in (site / "api").glob("*.html"))
    assert not [name for name in rldistill.__all__ if f'id="rldistill.{name}"' not in text]
    for file in site.rglob("*.html"):
        page = file.read_text(encoding="utf-8")
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]* src="([^"]*)|<link[^>]*rel="stylesheet"[^>]* href="([^"]*)', page
        )
        assert not [url for pair in loaded for url in pair if url.startswith(("http", "//"))], file.name
