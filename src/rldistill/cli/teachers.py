"""`rldistill teachers`: list, verify and compare teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rldistill.cli.errors import EXIT_FALSE, CommandGroup
from rldistill.cli.options import (
    Activation,
    AsJson,
    Env,
    EnvKwargs,
    Extractor,
    Head,
    Output,
    Quiet,
    Scale,
    Seed,
    Teacher,
    Teachers,
    output,
    parse_env,
    parse_teacher,
    print_json,
    print_result,
    require_new,
    show,
)
from rldistill.core.errors import ConfigError

teachers = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None, help="List, verify and compare teachers."
)


@teachers.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the teachers that are part of rldistill."""
    from rldistill.run.teachers import list_teachers

    rows = list_teachers()
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            show(row)


@teachers.command()
def verify(
    path: Teacher,
    env: Env,
    env_kwarg: EnvKwargs = None,
    activation: Activation = None,
    extractor: Extractor = None,
    head: Head = None,
    scale: Scale = None,
    output_name: Output = None,
    claimed: Annotated[str | None, typer.Option(help="Published mean return: 242.1±31.8 or 242.1.")] = None,
    claimed_episodes: Annotated[
        int, typer.Option(min=0, help="Number of episodes of the published mean; its ± has an error of its own.")
    ] = 0,
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes to play.")] = 100,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure the return of a teacher, compare it with a published one, and check for common mistakes."""
    from rldistill.evaluation.verify import Claim, VerifyConfig
    from rldistill.run.teachers import verify_teacher

    claim = Claim.parse(claimed, claimed_episodes) if claimed is not None else None
    teacher = parse_teacher(
        path, activation=activation, extractor=extractor, head=head, scale=scale, output=output_name
    )
    result = verify_teacher(teacher, parse_env(env, env_kwarg), VerifyConfig(episodes, claim), seed, quiet)
    with output(quiet and not as_json):
        print_result(result, as_json)
    if not result.ok:
        raise typer.Exit(EXIT_FALSE)


@teachers.command()
def compare(
    paths: Teachers,
    env: Env,
    env_kwarg: EnvKwargs = None,
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes of each teacher.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Labeled steps for each probe student.")] = 5_000,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file of the result.")] = None,
    page: Annotated[Path | None, typer.Option(help="HTML page of the result.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare teachers by return, cost, agreement, and the score of a small student of each."""
    from rldistill.evaluation.config import CompareConfig
    from rldistill.run import teachers as commands

    require_new(out, "--out")
    require_new(page, "--page")
    candidates = {teacher.path: teacher for teacher in map(parse_teacher, paths)}
    if len(candidates) < len(paths):
        raise ConfigError("teachers: the same path is there twice. To read one file in two ways, copy it.")
    config = CompareConfig(episodes=episodes, steps=steps)
    result = commands.compare(candidates, parse_env(env, env_kwarg), config, seed, quiet)
    commands.save_comparison(result, out, page)
    with output(quiet and not as_json):
        print_result(result, as_json)
