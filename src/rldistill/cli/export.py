"""`rldistill export` and `rldistill hub`: files that run without this package, their verification, and publication."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rldistill.cli.completion import complete_source
from rldistill.cli.errors import EXIT_FALSE, CommandGroup, command_group
from rldistill.cli.options import (
    ENV_HELP,
    AsJson,
    EnvKwargs,
    Overwrite,
    Quiet,
    RunFolder,
    StudentOfRun,
    output,
    parse_env,
    print_result,
    read_options,
)
from rldistill.core.errors import ConfigError, CorruptArtifactError, did_you_mean, printable

OptionalEnv = Annotated[str | None, typer.Option("--env", help=ENV_HELP, show_default=False)]
hub = command_group(help="Publish students on the Hugging Face Hub; `teacher: hub:OWNER/NAME` reads one.")


class ExportGroup(CommandGroup):
    """Commands of `rldistill export`; a path in place of a command exports the policy there."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of the arguments: `policy` if they begin with a path."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["policy", *args]
        return super().resolve_command(ctx, args)


exports = command_group(
    cls=ExportGroup,
    subcommand_metavar="PATH [OPTIONS] | verify DIR",
    help="Export a policy as ONNX, C, a web page or for Stable-Baselines3, with a certificate that it is the same.",
)


@exports.command()
def policy(
    path: Annotated[
        str,
        typer.Argument(
            help="Folder of a run, or path of any policy.", show_default=False, autocompletion=complete_source
        ),
    ],
    student: StudentOfRun = None,
    to: Annotated[str | None, typer.Option("--to", help="Formats: onnx,int8,c,html,sb3. [default: onnx,c]")] = None,
    env: OptionalEnv = None,
    env_kwarg: EnvKwargs = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder. [default: RUN/export/STUDENT]")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each file and the original.")] = 60,
    states: Annotated[int, typer.Option(min=1, help="Compared observations.")] = 10_000,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Export a policy; the default command. Exit with 1 if the files do not play like the policy."""
    from rldistill.exporters.config import FORMATS, ExportConfig
    from rldistill.run.export import ExportSource

    formats = [name.strip() for name in (to or "").split(",") if name.strip()]
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(
                f"--to: found {name!r}, expected some of {','.join(FORMATS)}.{did_you_mean(name, FORMATS)}"
            )
    config = read_options("--", ExportConfig, {"formats": formats, "episodes": episodes, "states": states})
    source = ExportSource(path, student, None if env is None else parse_env(env, env_kwarg))
    with output(quiet, as_json):
        folder, certificate = source.export(config, out, "overwrite" if overwrite else "new", quiet)
        if not as_json:
            print_result(certificate, as_json)
            typer.echo(f"files: {folder}")
    if as_json:
        print_result(certificate, as_json)
    if certificate.failures:
        raise typer.Exit(EXIT_FALSE)


@exports.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of an export.", show_default=False)],
    env: OptionalEnv = None,
    env_kwarg: EnvKwargs = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Run the C source and the SB3 zip of a folder that you trust.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare exported files with their certificate, test vectors and policy. Exit with 1 if they differ."""
    from rldistill.exporters.verify import verify_export
    from rldistill.io.progress import track

    with track("verify", "episodes", quiet) as progress:
        own_env = None if env is None else parse_env(env, env_kwarg)
        try:
            certificate = verify_export(folder, own_env, progress=progress, run_code=run_code)
        except CorruptArtifactError as error:  # a file that was changed is a failed comparison, too
            if not (folder / "parity.json").exists():
                raise
            print(f"error: {printable(str(error))}", file=sys.stderr)
            raise typer.Exit(EXIT_FALSE) from None
    if as_json or not quiet:
        print_result(certificate, as_json)
    if certificate.failures:
        raise typer.Exit(EXIT_FALSE)


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
    from rldistill.run.export import publish_student

    published = publish_student(run, student, repo, private, overwrite)
    if not quiet:
        for remark in published.remarks:
            typer.echo(f"warning: {remark}", err=True)
        typer.echo(f"{published.url}: {', '.join(published.files)}")
