"""Hooks of mkdocs: pages that are made from other files, and links that work on GitHub and in the site."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STUB = ROOT / "src" / "rldistill" / "__init__.pyi"
NOTEBOOKS = ROOT / "examples" / "notebooks"
TITLES = {"core": "core: policies, heads, errors", "io": "io: modes, progress, jobs"}


def api_pages() -> dict[str, str]:
    """Return the pages of the Python API in Markdown, by package: all names that the stub of rldistill exports."""
    names = defaultdict(list)
    for package, name in re.findall(
        r"^from \.(\w+)\S* import (\w+) as", STUB.read_text(encoding="utf-8"), re.MULTILINE
    ):
        names[package].append(name)
    return {
        package: f"# {TITLES.get(package, package)}\n\n"
        + "\n".join(f"::: rldistill.{name}\n" for name in sorted(public))
        for package, public in sorted(names.items())
    }


def notebook_page(file: Path) -> str:
    """Return a notebook in Markdown, without outputs."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(file.read_text("utf-8"))["cells"]]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)


def on_config(config: Any) -> None:
    """List the generated pages in the navigation, in place of the names of their folders, and new pages under More."""
    listed = str(config.nav)
    new = [file.name for file in sorted(ROOT.glob("docs/*.md")) if f"'{file.name}'" not in listed]
    next(section["More"] for section in config.nav if "More" in section).extend({Path(n).stem.title(): n} for n in new)
    pages = {
        "api": [f"api/{package}.md" for package in api_pages()],
        "notebooks": [f"notebooks/{file.stem}.md" for file in sorted(NOTEBOOKS.glob("*.ipynb"))],
    }
    for section in config.nav:
        for entries in section.values():
            for entry in entries if isinstance(entries, list) else []:
                entry.update({title: pages.get(target, target) for title, target in entry.items()})


def on_files(files: Any, config: Any) -> None:
    """Add the pages that are made from other files, and the examples."""
    from mkdocs.structure.files import File

    made = {f"api/{package}.md": text for package, text in api_pages().items()}
    made |= {f"notebooks/{file.stem}.md": notebook_page(file) for file in NOTEBOOKS.glob("*.ipynb")}
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        made[name.lower()] = (ROOT / name).read_text(encoding="utf-8")
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.is_file() and path.suffix in (".yaml", ".yml", ".py", ".sh", ".ipynb"):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its links to files of the repository as links to the pages and files of the site."""
    return re.sub(r"\]\((?:\.\./|docs/)", "](", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Return a page whose code blocks can have the focus, so that long lines scroll with the keyboard."""
    return re.sub(r"(<pre>(?:<span></span>)?)<code>", r'\1<code tabindex="0">', html)
