"""`rldistill teachers`: list, verify and compare teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import rldistill
from rldistill.cli.errors import EXIT_FALSE, command_group
from rldistill.cli.options import (
    TEACHER_HELP,
    AsJson,
    Backend,
    Env,
    EnvKwargs,
    Page,
    Quiet,
    Seed,
    Teacher,
    Workers,
    output,
    parse_env,
    parse_teacher,
    print_json,
    print_result,
    read_options,
    require_new,
)
from rldistill.core.errors import ConfigError

teachers = command_group(help="List, verify and compare teachers.")


@teachers.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the teachers that are part of rldistill."""
    from rldistill.evaluation.tables import number_text
    from rldistill.teachers.zoo import zoo_documents, zoo_kilobytes

    rows, evaluations = [], zoo_documents("evaluation.json")
    for name, document in zoo_documents().items():
        evaluation = evaluations[name]
        row = {
            "name": f"zoo:{name}",
            "env": evaluation["env"],
            "mean_return": evaluation["policies"]["teacher"]["mean"]["value"],
            "episodes": evaluation["episodes"],
            "parameters": evaluation["policies"]["teacher"]["parameters"],
            "kilobytes": zoo_kilobytes(name),
            "algorithm": document["provenance"].get("algorithm"),
            "env_steps": document["provenance"].get("env_steps"),
            "observation": "x".join(map(str, document["spec"]["obs_shape"])),
            "actions": document["spec"]["head"]["kind"],
            "license": document["provenance"].get("license", "MIT"),  # that of the package
        }
        rows.append(row)
    if as_json:
        print_json(rows)
        return
    widths = [max(len(row[key]) for row in rows) for key in ("name", "env")]
    typer.echo(f"{'teacher':<{widths[0]}}  {'environment':<{widths[1]}}  mean return  parameters")
    for row in rows:
        size = f"{number_text(row['mean_return']):>11}  {row['parameters']:>10,}"
        typer.echo(f"{row['name']:<{widths[0]}}  {row['env']:<{widths[1]}}  {size}")


@teachers.command()
def verify(
    path: Teacher,
    env: Env,
    env_kwarg: EnvKwargs = None,
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
    from rldistill.envs.spaces import spec_from_env
    from rldistill.io.progress import track

    claim = rldistill.Claim.parse(claimed, claimed_episodes) if claimed is not None else None
    teacher, where = parse_teacher(path), parse_env(env, env_kwarg)
    policy, config = teacher.load(spec_from_env(where.view_of("teacher"))), rldistill.VerifyConfig(episodes, claim)
    with track("verify", "episodes", quiet) as progress:
        result = rldistill.verify(where, policy, config, seed=seed, name=teacher.path, progress=progress)
    with output(quiet and not as_json):
        print_result(result, as_json)
    if not result.ok:
        raise typer.Exit(EXIT_FALSE)


@teachers.command()
def compare(
    paths: Annotated[list[str], typer.Argument(metavar="TEACHER ...", help=TEACHER_HELP, show_default=False)],
    env: Env,
    env_kwarg: EnvKwargs = None,
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes of each teacher.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Labeled steps for each probe student.")] = 5_000,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file of the result.")] = None,
    page: Page = None,
    backend: Backend = None,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare teachers by return, cost, agreement, and the score of a small student of each."""
    from rldistill.envs.spaces import spec_from_env
    from rldistill.io.atomic import write_json
    from rldistill.io.progress import track
    from rldistill.reporting.page import write_comparison

    require_new(out, "--out")
    require_new(page, "--page")
    options = {"backend": backend, "workers": workers}
    execution = read_options("--", rldistill.Execution, {key: value for key, value in options.items() if value})
    candidates = {teacher.path: teacher for teacher in map(parse_teacher, paths)}
    if len(candidates) < len(paths):
        raise ConfigError("teachers: the same path is there twice. To read one file in two ways, copy it.")
    where, config = parse_env(env, env_kwarg), rldistill.CompareConfig(episodes=episodes, steps=steps)
    spec = spec_from_env(where.view_of("teacher"))
    policies = {path: teacher.load(spec) for path, teacher in candidates.items()}
    with track("compare", "parts", quiet) as progress:
        result = rldistill.compare_teachers(where, policies, config, seed=seed, progress=progress, execution=execution)
    if out is not None:
        write_json(out, result.to_dict())
    if page is not None:
        write_comparison(result, page)
    with output(quiet and not as_json):
        print_result(result, as_json)
