"""`rldistill demo` and `rldistill examples`: runs that ship with the package."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Annotated

import typer

import rldistill
from rldistill.cli.options import Quiet, output, require_new
from rldistill.core.errors import ConfigError, MissingExtraError, did_you_mean


def examples_folder() -> Path:
    """Return the folder of the run files that ship: in the installed package, or in a clone of the repository."""
    package = Path(rldistill.__file__ or "").parent
    installed = package / "examples"
    return installed if installed.is_dir() else package.parents[1] / "examples"


def example_files() -> dict[str, Path]:
    """Return the run files that ship, by name."""
    folder = examples_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def description(text: str) -> str:
    """Return the comment at the top of a run file, without the line for editors."""
    comment = re.match(r"(#.*\n)*", text)
    lines = comment[0].splitlines() if comment else []
    return "\n".join(line.removeprefix("#").strip() for line in lines if "yaml-language-server" not in line)


def complete_example(incomplete: str) -> list[str]:
    """Return the names of examples that begin with `incomplete`."""
    return [name for name in example_files() if name.startswith(incomplete)]


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="All stages in about a minute, for a weak student.")] = False,
    quiet: Quiet = False,
) -> None:
    """Distill the Pong teacher that ships, and write a report; call it again to continue."""
    from rldistill.exporters.formats import require_packages

    settings = []
    try:
        require_packages(("onnx",))
    except MissingExtraError:
        settings = [] if quick else ["export.formats=[c]"]
    run = rldistill.load_run(example_files()["pong-quick" if quick else "pong"], settings)
    with output(quiet):
        rldistill.run_all(run, "resume", quiet)


def examples(
    name: Annotated[
        str | None, typer.Argument(help="Example to copy.", show_default=False, autocompletion=complete_example)
    ] = None,
) -> None:
    """List the run files that ship; with a name, copy one, and the code that it names, into `examples/`."""
    files, folder = example_files(), examples_folder()
    if name is None:
        for key, path in files.items():
            sentence = description(path.read_text(encoding="utf-8")).replace("\n", " ").split(". ")[0].rstrip(".")
            typer.echo(f"{key:<{max(map(len, files))}}  {textwrap.shorten(sentence, 100, placeholder=' ...')}")
        return
    if name not in files:
        raise ConfigError(f"examples: there is no {name!r}.{did_you_mean(name, files)} `rldistill examples` lists all.")
    text = files[name].read_text(encoding="utf-8")
    modules = {module.rpartition(".")[2] for module in re.findall(r"([a-z_][\w.]*):[A-Za-z_]", text)}
    sources = [files[name], *(path for path in sorted(folder.rglob("*.py")) if path.stem in modules)]
    targets = [Path("examples") / path.relative_to(folder) for path in sources]
    # The schema that the first line names for editors is not copied.
    texts = [re.sub(r"\A# yaml-language-server.*\n", "", source.read_text(encoding="utf-8")) for source in sources]
    for target, content in zip(targets, texts, strict=True):
        if target == targets[0] or not target.is_file() or target.read_text(encoding="utf-8") != content:
            require_new(target, "examples")  # code that another example has brought may be there
    for target, content in zip(targets, texts, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, "utf-8")
        typer.echo(target)
    verb = "run" if "\nstudents:" in text else "train"
    typer.echo(f"\n{description(text)}\n\nNow: rldistill {verb} {targets[0]}")
