"""`rldistill hub`: students on the Hugging Face Hub."""

from __future__ import annotations

from typing import Annotated

import typer

from rldistill.cli.errors import command_group
from rldistill.cli.options import Quiet, RunFolder, StudentOfRun

hub = command_group(help="Publish students on the Hugging Face Hub; `teacher: hub:OWNER/NAME` reads one.")


@hub.callback()
def describe() -> None:
    """Publish students on the Hugging Face Hub; `teacher: hub:OWNER/NAME` reads one."""


@hub.command()
def push(
    run: RunFolder,
    repo: Annotated[str, typer.Option("--repo", metavar="OWNER/NAME", help="Repository.", show_default=False)],
    student: StudentOfRun = None,
    private: Annotated[bool, typer.Option("--private", help="Create a repository that only you see.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of a repository that has some.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write a student with its model card, exported files, certificate and video to a repository of the Hub."""
    from rldistill.run.publish import publish_student

    published = publish_student(run, student, repo, private, overwrite)
    if not quiet:
        for remark in published.remarks:
            typer.echo(f"warning: {remark}", err=True)
        typer.echo(f"{published.url}: {', '.join(published.files)}")
