"""`rldistill dataset`: inspect, check and transform datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rldistill.cli.errors import CommandGroup
from rldistill.cli.options import (
    Activation,
    AsJson,
    Dataset,
    Extractor,
    File,
    Head,
    Output,
    Overrides,
    Overwrite,
    Quiet,
    Scale,
    Teacher,
    mode_of,
    output,
    parse_teacher,
    show,
)

datasets = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None, help="Inspect, check and transform datasets."
)

Out = Annotated[Path, typer.Option("--out", help="Folder of the new dataset.", show_default=False)]


@datasets.command()
def info(path: Dataset, as_json: AsJson = False) -> None:
    """Print the size and the origin of a dataset."""
    from rldistill.data.info import describe

    show(describe(path), as_json)


@datasets.command()
def check(path: Dataset, as_json: AsJson = False) -> None:
    """Read every block and compare it with its hash."""
    from rldistill.data.info import verify

    show(verify(path), as_json)


@datasets.command()
def relabel(
    path: Dataset,
    teacher: Teacher,
    out: Out,
    activation: Activation = None,
    extractor: Extractor = None,
    head: Head = None,
    scale: Scale = None,
    output_name: Output = None,
    features: Annotated[bool, typer.Option("--features", help="Also store the teacher's last hidden layer.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Label the observations of a dataset with another teacher."""
    from rldistill.run.datasets import relabel_dataset

    labeler = parse_teacher(
        teacher, activation=activation, extractor=extractor, head=head, scale=scale, output=output_name
    )
    with output(quiet):
        show(relabel_dataset(path, labeler, out, features, mode_of(False, overwrite), quiet))


@datasets.command()
def extend(
    file: File,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Environment steps to add.", show_default=False)],
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Add steps with new seeds to the dataset of a run."""
    from rldistill.run.config import load_run
    from rldistill.run.datasets import extend_dataset

    with output(quiet):
        show(extend_dataset(load_run(file, overrides or ()), steps, quiet))


@datasets.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(help="Folders of datasets, or of their runs.", show_default=False)],
    out: Out,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Merge datasets into one."""
    from rldistill.run.datasets import merge_datasets

    with output(quiet):
        show(merge_datasets(paths, out, mode_of(False, overwrite), quiet))


@datasets.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="minari:NAME of a dataset on this machine.", show_default=False)],
    out: Out,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Import a dataset of Minari, labeled with its own actions; relabel it with a teacher."""
    from rldistill.run.datasets import import_dataset

    with output(quiet):
        show(import_dataset(source, out, mode_of(False, overwrite), quiet))


@datasets.command()
def export(
    path: Dataset,
    target: Annotated[str, typer.Argument(help="minari:NAME, such as minari:pong/dqn-v0.", show_default=False)],
    quiet: Quiet = False,
) -> None:
    """Export a dataset to Minari without loss."""
    from rldistill.run.datasets import export_dataset

    export_dataset(path, target, quiet)
