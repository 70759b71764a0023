"""`rldistill dataset`: look into one, check it, make another of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rldistill.cli.shared import (
    AsJson,
    Dataset,
    File,
    Overrides,
    Overwrite,
    Quiet,
    Teacher,
    Verbs,
    mode_of,
    output,
    show,
)

datasets = typer.Typer(cls=Verbs, no_args_is_help=True, rich_markup_mode=None, help="Look into a dataset.")

Out = Annotated[Path, typer.Option("--out", help="The folder of the new dataset.", show_default=False)]


@datasets.command()
def info(path: Dataset, as_json: AsJson = False) -> None:
    """Say what a dataset holds."""
    from rldistill.data.info import describe

    show(describe(path), as_json)


@datasets.command()
def check(path: Dataset, as_json: AsJson = False) -> None:
    """Compare every block with its hash and read it."""
    from rldistill.data.info import verify

    show(verify(path), as_json)


@datasets.command()
def relabel(
    path: Dataset,
    teacher: Teacher,
    out: Out,
    activation: Annotated[str | None, typer.Option(help="Of its layers, where its file does not tell.")] = None,
    head: Annotated[str | None, typer.Option(help="What a network's numbers mean: q_values.")] = None,
    scale: Annotated[float, typer.Option(help="What the input of ONNX and Keras is multiplied with.")] = 1.0,
    numbers: Annotated[str | None, typer.Option("--output", help="Of ONNX, where several outputs fit.")] = None,
    features: Annotated[bool, typer.Option("--features", help="Store its last hidden layer, too.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Ask another teacher about the states of a dataset."""
    from rldistill.cli.options import teacher_from_options
    from rldistill.run import datasets as recipe

    asked = teacher_from_options(teacher, activation, head, scale, numbers)
    with output(quiet):
        show(recipe.relabel_dataset(path, asked, out, features, mode_of(False, overwrite), quiet), as_json=False)


@datasets.command()
def extend(
    file: File,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Environment steps to add.", show_default=False)],
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Collect more steps into a run's dataset, with seeds of their own."""
    from rldistill.run import datasets as recipe
    from rldistill.run.config import load_run

    with output(quiet):
        show(recipe.extend_dataset(load_run(file, overrides or ()), steps, quiet), as_json=False)


@datasets.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(help="Datasets, or the folders of their runs.", show_default=False)],
    out: Out,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make one dataset of several."""
    from rldistill.run import datasets as recipe

    with output(quiet):
        show(recipe.merge_datasets(paths, out, mode_of(False, overwrite), quiet), as_json=False)


@datasets.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="minari:NAME, which has to be on this machine.", show_default=False)],
    out: Out,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Read a dataset of Minari, labelled with the actions that were taken; relabel it with a teacher."""
    from rldistill.run import datasets as recipe

    with output(quiet):
        show(recipe.import_dataset(source, out, mode_of(False, overwrite), quiet), as_json=False)


@datasets.command()
def export(
    path: Dataset,
    target: Annotated[str, typer.Argument(help="minari:NAME, such as minari:pong/dqn-v0.", show_default=False)],
    quiet: Quiet = False,
) -> None:
    """Write a dataset as one of Minari's, without loss."""
    from rldistill.run import datasets as recipe

    recipe.export_dataset(path, target, quiet)
