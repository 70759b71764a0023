"""`rldistill teachers`: find, verify and compare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rldistill.cli.shared import AsJson, Env, EnvArgument, Quiet, Seed, Teacher, Verbs, output, require_new, show

teachers = typer.Typer(cls=Verbs, no_args_is_help=True, rich_markup_mode=None, help="Find, verify, compare teachers.")


@teachers.command("list")
def list_(as_json: AsJson = False) -> None:
    """The teachers that ship."""
    from rldistill.run.teachers import list_teachers

    rows = list_teachers()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        for row in rows:
            show(row, as_json=False)


@teachers.command()
def verify(
    path: Teacher,
    env: Env,
    env_kwarg: EnvArgument = None,
    claimed: Annotated[str | None, typer.Option(help="Its published return: 242.1±31.8 or 242.1.")] = None,
    claimed_episodes: Annotated[
        int, typer.Option(min=0, help="Episodes that the claim is the mean of; its ± counts with them.")
    ] = 0,
    episodes: Annotated[int, typer.Option(min=1)] = 100,
    seed: Seed = 0,
    activation: Annotated[str | None, typer.Option(help="Of its layers, where its file does not tell.")] = None,
    head: Annotated[str | None, typer.Option(help="What a network's numbers mean: q_values.")] = None,
    scale: Annotated[float, typer.Option(help="What the input of ONNX and Keras is multiplied with.")] = 1.0,
    numbers: Annotated[str | None, typer.Option("--output", help="Of ONNX, where several outputs fit.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score a teacher, compare it with what is claimed of it, look for the usual mistakes."""
    from rldistill.cli.options import env_from_options, teacher_from_options
    from rldistill.evaluation.verify import Claim, VerifyConfig
    from rldistill.run.teachers import verify_teacher

    claim = Claim.parse(claimed, claimed_episodes) if claimed is not None else None
    teacher = teacher_from_options(path, activation, head, scale, numbers)
    found = verify_teacher(teacher, env_from_options(env, env_kwarg or ()), VerifyConfig(episodes, claim), seed, quiet)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        with output(quiet):
            typer.echo(str(found))
    if not found.ok:
        raise typer.Exit(1)


@teachers.command()
def compare(
    paths: Annotated[
        list[str], typer.Argument(help="Teachers: zoo:NAME, folders, SB3 zips; FILE,head=q_values.", show_default=False)
    ],
    env: Env,
    env_kwarg: EnvArgument = None,
    episodes: Annotated[int, typer.Option(min=1)] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Labelled steps for each probe student.")] = 5_000,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Write the result there, as JSON.")] = None,
    page: Annotated[Path | None, typer.Option(help="Write it there as a page, in HTML.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Say which teacher to take: returns, cost, agreement, and what a small student learns from each."""
    from rldistill.cli.options import env_from_options, teachers_from_options
    from rldistill.evaluation.config import CompareConfig
    from rldistill.run import teachers as recipe

    require_new(out, "--out")
    require_new(page, "--page")
    config = CompareConfig(episodes=episodes, steps=steps)
    found = recipe.compare(teachers_from_options(paths), env_from_options(env, env_kwarg or ()), config, seed, quiet)
    recipe.save_comparison(found, out, page)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        with output(quiet):
            typer.echo(str(found))
