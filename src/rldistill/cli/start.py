"""`rldistill demo`, `rldistill examples` and `rldistill init`: the first runs of a user."""

from __future__ import annotations

import dataclasses
import re
import shlex
import textwrap
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated, Any

import typer

import rldistill
from rldistill.cli.completion import complete_teacher
from rldistill.cli.options import NEW_ENV_HELP, TEACHER_HELP, Quiet, output, parse_env, parse_teacher, require_new
from rldistill.core.errors import ConfigError, MissingExtraError, did_you_mean

TRAIN = "train"
"""Answer in place of a teacher that exists."""
PICTURE_PARAMETERS = 30_000
"""Largest student on pictures."""
TRAINED = """
  train: # PPO, DQN, SAC, ... of Stable-Baselines3; more steps until its curve in the report is flat
    algorithm: PPO
    total_steps: 200_000"""


def init(
    file: Annotated[Path | None, typer.Argument(help="Run file to write; by default ENV.yaml.")] = None,
    env: Annotated[str | None, typer.Option(help=NEW_ENV_HELP, show_default=False)] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help=f"{TEACHER_HELP}; or {TRAIN}, to train one.", show_default=False, autocompletion=complete_teacher
        ),
    ] = None,
) -> None:
    """Write a commented run file for an environment and a teacher, and ask for the missing ones."""
    from rldistill.envs.spaces import spec_from_env
    from rldistill.evaluation.check_env import require_env
    from rldistill.run.config import parse_value, read_run, run_name
    from rldistill.run.jobs import load_teacher

    env = env or _ask("Environment, such as CartPole-v1")
    config = parse_env(env, None)
    name = re.sub(r"-v\d+$", "", re.split("[/:]", config.id)[-1]).lower()
    file = file or Path(f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-') or 'run'}.yaml")
    require_new(file, "init")
    require_env(config)
    teacher = teacher or _ask(f"Teacher, a path, zoo:NAME, or {TRAIN} for a new one", _teacher_of(config.id))
    values = {
        "file": shlex.quote(str(file)),
        "id": config.id,
        "env": _flow(parse_value(env, "env") if env.startswith("{") else {"id": env}),
        "teacher": TRAINED if teacher == TRAIN else f" {_flow(_options(parse_teacher(teacher)))}",
        **_sizes(spec_from_env(config.view_of("student"))),
    }
    text = Template((resources.files("rldistill.cli") / "run_file.yaml").read_text("utf-8")).substitute(values)
    own_name = run_name(file)
    run = read_run({**parse_value(text, "init"), "name": own_name, "out": f"runs/{own_name}"}, "init")
    if teacher != TRAIN:
        run.recipe.check(run, load_teacher(run))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    typer.echo(f"{file}: run it with `rldistill run {values['file']}`")


def _ask(question: str, default: str | None = None) -> str:
    try:
        return str(typer.prompt(question, default))
    except typer.Abort:
        raise ConfigError("init: there is no answer. Give --env ENV and --teacher TEACHER.") from None


def _teacher_of(env: str) -> str:
    """Return the teacher that ships for an environment, or TRAIN."""
    from rldistill.teachers.zoo import zoo_documents

    found = (f"zoo:{name}" for name, result in zoo_documents("evaluation.json").items() if result["env"] == env)
    return next(found, TRAIN)


def _options(teacher: rldistill.SavedTeacher) -> Any:
    """Return a teacher as a run file has it: its path, or a mapping if it has options."""
    fields = {
        field.name: value
        for field in dataclasses.fields(teacher)
        if (value := getattr(teacher, field.name)) != field.default
    }
    return fields if len(fields) > 1 else teacher.path


def _sizes(spec: rldistill.PolicySpec) -> dict[str, Any]:
    """Return the student, the steps and the episodes that suit the observations, as texts of a run file."""
    from rldistill.recipes import to_document
    from rldistill.students.budget import fit_budget

    student: Any = rldistill.Mlp((32, 32))
    steps, episodes = 10_000, 100
    if len(spec.obs_shape) == 3 or spec.has_pictures:
        student = fit_budget(spec, "multi_input" if spec.has_pictures else "cnn", parameters=PICTURE_PARAMETERS)
        steps, episodes = 50_000, 30
    if spec.agents:
        student = rldistill.Team(student)
    document = to_document(student)
    return {
        "name": document if isinstance(document, str) else document["type"],
        "student": _flow(document),
        "steps": f"{steps:_}",
        "steps_per_round": f"{steps // 2:_}",
        "episodes": episodes,
    }


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()


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
        if target == targets[0] or not target.is_file() or target.read_bytes() != content.encode():
            require_new(target, "examples")  # code that another example has brought may be there
    for target, content in zip(targets, texts, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, "utf-8")
        typer.echo(target)
    verb = "run" if "\nstudents:" in text else "train"
    typer.echo(f"\n{description(text)}\n\nNow: rldistill {verb} {targets[0]}")
