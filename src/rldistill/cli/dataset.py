"""`rldistill dataset`: inspect, check and transform datasets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import rldistill
from rldistill.cli.completion import complete_started_run, complete_student_type
from rldistill.cli.errors import command_group
from rldistill.cli.options import (
    AsJson,
    File,
    Overrides,
    Overwrite,
    Quiet,
    Resume,
    Teacher,
    mode_of,
    parse_pairs,
    parse_teacher,
    read_options,
    show,
)
from rldistill.core.errors import ConfigError, SpecMismatchError, UntrustedFileError

datasets = command_group(help="Inspect, check and transform datasets.")

Dataset = Annotated[
    Path,
    typer.Argument(help="Folder of a dataset, or of its run.", show_default=False, autocompletion=complete_started_run),
]
Out = Annotated[Path, typer.Option("--out", help="Folder of the new dataset.", show_default=False)]

StudentOption = Annotated[
    str,
    typer.Option(
        "--student",
        help="As in a run file: mlp, or '{type: mlp, hidden: [8]}'.",
        show_default=False,
        autocompletion=complete_student_type,
    ),
]
StudentOut = Annotated[Path, typer.Option("--out", help="Folder of the new student.", show_default=False)]


def _describe(path: Path) -> dict[str, Any]:
    """Return a summary of the manifest."""
    from rldistill.data.manifest import Manifest, dataset_folder

    folder = dataset_folder(path)
    manifest = Manifest.read(folder)
    chosen = {number: round.condensed for number, round in manifest.rounds.items() if round.condensed is not None}
    kept = sum(choice.keep for choice in chosen.values())
    states = sum(block.steps for block in manifest.blocks if block.round in chosen)
    return {
        "folder": str(folder),
        "env": manifest.env.id,
        "steps": manifest.num_steps,
        "rounds": len({block.round for block in manifest.blocks}),
        "blocks": len(manifest.blocks),
        "observations": ", ".join(
            f"{key} {part.dtype}{list(part.shape)}".strip() for key, part in manifest.spec.entries.items()
        ),
        "labels": manifest.spec.head.kind,
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        "exact": all(block.exact for block in manifest.blocks),
        **({"condensed": f"{kept:,} training states, {states - kept:,} held out"} if chosen else {}),
    }


@contextmanager
def _transformation(verb: str, out: Path, quiet: bool, unit: str = "steps") -> Iterator[rldistill.Progress]:
    """Show the progress of a command, and then the dataset in `out`."""
    from rldistill.io.progress import track

    with track(verb, unit, quiet) as progress:
        yield progress
    if not quiet:
        show(_describe(out))


@datasets.command()
def info(path: Dataset, as_json: AsJson = False) -> None:
    """Print the size and the origin of a dataset."""
    show(_describe(path), as_json)


@datasets.command()
def check(path: Dataset, as_json: AsJson = False) -> None:
    """Read every block and compare it with its hash."""
    dataset = rldistill.open_dataset(path)
    sizes = {"episodes": dataset.num_episodes, "held-out steps": int(dataset.heldout.sum())}
    show({**_describe(path), **sizes, "state": "every block is whole"}, as_json)


@datasets.command()
def relabel(
    path: Dataset,
    teacher: Teacher,
    out: Out,
    features: Annotated[bool, typer.Option("--features", help="Also store the teacher's last hidden layer.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Label the observations of a dataset with another teacher."""
    from rldistill.collection.relabel import teacher_spec
    from rldistill.data.manifest import Manifest, dataset_folder

    source = dataset_folder(path)
    manifest = Manifest.read(source)
    try:
        policy = parse_teacher(teacher).load(teacher_spec(manifest))
    except (SpecMismatchError, UntrustedFileError) as error:
        if manifest.env.views is None or manifest.teacher_spec is not None:
            raise
        raise SpecMismatchError(
            f"{str(error).rstrip('.')}. {source} holds only the observations of the student. For a teacher with "
            "another view, collect with teacher_obs: true."
        ) from None
    with _transformation("relabel", out, quiet) as progress:
        rldistill.relabel(
            source, policy, out, features=features, mode="overwrite" if overwrite else "new", progress=progress
        )


@datasets.command()
def seal(path: Dataset, as_json: AsJson = False) -> None:
    """Make the dataset of all shards of a collection: `collect --shard` wrote its blocks."""
    from rldistill.collection.collect import seal
    from rldistill.data.manifest import FILE, dataset_folder

    if not (dataset_folder(path) / FILE).exists():
        raise ConfigError(f"dataset: {path}: there is none. Collect one first (`rldistill collect FILE --shard 1/2`).")
    seal(dataset_folder(path))
    show(_describe(path), as_json)


@datasets.command()
def extend(
    file: File,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Environment steps to add.", show_default=False)],
    overrides: Overrides = None,
    quiet: Quiet = False,
) -> None:
    """Add steps with new seeds to the dataset of a run."""
    from rldistill.run.stages import extend_dataset

    run = rldistill.load_run(file, overrides or ())
    with _transformation("collect", run.dataset_folder, quiet) as progress:
        extend_dataset(run, steps, progress)


@datasets.command()
def merge(
    paths: Annotated[list[Path], typer.Argument(help="Folders of datasets, or of their runs.", show_default=False)],
    out: Out,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Merge datasets into one."""
    from rldistill.data.manifest import dataset_folder

    with _transformation("merge", out, quiet) as progress:
        rldistill.merge([*map(dataset_folder, paths)], out, mode="overwrite" if overwrite else "new", progress=progress)


@datasets.command()
def condense(
    path: Dataset,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Training states to keep.", show_default=False)],
    out: Out,
    gamma: Annotated[
        float | None, typer.Option("--gamma", min=0, max=1, help="Discount of the returns-to-go, else 0.99.")
    ] = None,
    weighted: Annotated[bool, typer.Option("--weighted", help="Weigh states by the cost of a mistake there.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Keep the few states that cover all others."""
    from rldistill.data.manifest import dataset_folder

    source, mode = dataset_folder(path), mode_of(False, overwrite)
    with _transformation("condense", out, quiet, "states") as progress:
        rldistill.condense(source, out, keep, weighted=weighted, gamma=gamma, mode=mode, progress=progress)


@datasets.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="minari:NAME of a dataset on this machine.", show_default=False)],
    out: Out,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Import a dataset of Minari, labeled with its own actions; relabel it with a teacher."""
    _require_minari(source)
    with _transformation("import", out, quiet) as progress:
        rldistill.import_minari(source, out, mode="overwrite" if overwrite else "new", progress=progress)


@datasets.command()
def export(
    path: Dataset,
    target: Annotated[
        str, typer.Argument(help="minari:NAME, such as minari:pong/dqn-v0, or lerobot:DIR.", show_default=False)
    ],
    quiet: Quiet = False,
) -> None:
    """Export a dataset to Minari without loss, or as a LeRobotDataset of version 3.0."""
    from rldistill.data.manifest import dataset_folder
    from rldistill.io.progress import track

    folder = target.removeprefix("lerobot:")
    if not folder or not target.startswith(("minari:", "lerobot:")):
        raise ConfigError(f"{target}: expected minari:NAME, such as minari:pong/dqn-v0, or lerobot:DIR")
    with track("export", "steps", quiet) as progress:
        if folder != target:
            rldistill.export_lerobot(dataset_folder(path), folder, progress=progress)
        else:
            rldistill.export_minari(dataset_folder(path), target, progress=progress)


@datasets.command()
def distill(
    path: Dataset,
    student: StudentOption,
    out: StudentOut,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of distillation: epochs=3")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Training seed.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Distill a dataset alone, such as an imported one, without a teacher or an environment."""
    from rldistill.io.progress import track
    from rldistill.run.config import parse_value
    from rldistill.students import AnyStudent

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out} exists. Name another folder.")
    chosen = read_options("--student: ", AnyStudent, parse_value(student, "--student"))
    config = read_options("distill.", rldistill.DistillConfig, parse_pairs("distill", settings or ()))
    with track("distill", "epochs", quiet) as progress:
        rldistill.distill(path, chosen, config, out, seed=seed, progress=progress)
    if not quiet:
        typer.echo(f"student: {out}")


@datasets.command()
def imitate(
    path: Dataset,
    student: StudentOption,
    out: StudentOut,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As in a run file: ppo.total_steps=300_000")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Training seed.")] = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a student in the environment of a dataset to act as recorded, without a teacher (adversarial imitation)."""
    from rldistill.io.progress import track
    from rldistill.run.config import parse_value
    from rldistill.students import AnyStudent

    chosen = read_options("--student: ", AnyStudent, parse_value(student, "--student"))
    sections: dict[str, Any] = {}
    for key, value in parse_pairs("settings", settings or ()).items():
        section, dot, name = key.partition(".")
        if not dot:
            raise ConfigError(f"settings: found {key!r}, expected section.key=value, as in ppo.total_steps=300_000")
        sections.setdefault(section, {})[name] = value
    config = read_options("", rldistill.ImitateConfig, sections | {"seed": seed})
    with track("imitate", "steps", quiet) as progress:
        rldistill.imitate(path, chosen, config, out, mode=mode_of(resume, overwrite), progress=progress)
    if not quiet:
        typer.echo(f"student: {out}")


def _require_minari(name: str) -> None:
    if not name.startswith("minari:"):
        raise ConfigError(f"{name}: expected minari:NAME, such as minari:pong/dqn-v0")
