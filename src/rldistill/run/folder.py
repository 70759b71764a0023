"""Folder of a run: its record, and the policies, environment steps and learning curves in it."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import yaml

from rldistill.core.errors import ConfigError, CorruptArtifactError, RLDistillError
from rldistill.data.manifest import Manifest
from rldistill.evaluation.episodes import PolicyRuns
from rldistill.evaluation.evaluate import Curve
from rldistill.io import stage_inputs
from rldistill.io.atomic import (
    UNFINISHED,
    Mode,
    read_json,
    read_jsonl,
    remove_unfinished,
    require_mode,
    write_json,
    write_text,
)
from rldistill.io.execution import Shard
from rldistill.io.hub import COMMIT
from rldistill.io.lock import lock_folder
from rldistill.io.progress_file import record_progress
from rldistill.io.provenance import provenance
from rldistill.io.storage import synced
from rldistill.recipes.job import Run
from rldistill.reporting.sections import CONTROL_SUFFIX
from rldistill.run.tracking import tracked
from rldistill.students.storage import load_native, read_document
from rldistill.teachers.hub import REVISIONS, commit_of, hub_paths
from rldistill.teachers.training.config import TrainConfig

P = ParamSpec("P")
T = TypeVar("T")
RUN_FILES = (
    "config.yaml",
    "provenance.json",
    "evaluation.json",
    "report.html",
    "MODEL_CARD.md",
    "tracking.json",
    "videos",
)
"""Files of a run outside of its stages' folders; these folders are protected by the stages themselves."""


@contextmanager
def work_in(folder: Path, shard: Shard | None = None) -> Iterator[None]:
    """Hold the lock of a run's folder, which shards share, and record the progress there."""
    part = "" if shard is None else f"shard-{shard.number}-of-{shard.count}"
    with lock_folder(folder, shared=shard is not None), record_progress(folder, part):
        yield


@contextmanager
def record_run(run: Run, mode: Mode, *stages: str, shard: Shard | None = None) -> Iterator[None]:
    """Write `config.yaml` and `provenance.json`; restore the old ones if the work fails and changes no stage.

    With a `shard`, other processes may change stages at the same time; old files are restored after a ConfigError.

    Raises:
        ConfigError: `mode` is none, another process uses the folder, or the folder is not that of a run and holds a
            file that a run would overwrite.
    """
    require_mode(mode)
    commits = {path: commit_of(path) for path in sorted({*hub_paths(run)})}
    with work_in(run.out, shard):
        remove_unfinished(run.out.glob(UNFINISHED))
        config, machine = run.out / "config.yaml", run.out / "provenance.json"
        document, problem = None, ""
        try:
            document = read_json(machine)
        except CorruptArtifactError as error:
            if machine.exists():
                problem = f" ({error})"
        if not isinstance(document, dict) or "versions" not in document:
            for name in RUN_FILES:
                if (run.out / name).exists():
                    raise ConfigError(
                        f"{run.out}: it is not the folder of a run{problem}, which would overwrite its {name}. Use "
                        "another folder (out=...)."
                    )
        old = {path: path.read_text(encoding="utf-8") if path.exists() else None for path in (config, machine)}
        times = _modification_times(run, stages)
        # First, since it marks the folder as that of a run.
        write_json(machine, provenance(run.seed) | ({"hub": commits} if commits else {}))
        write_text(config, yaml.safe_dump(run.document or stage_inputs.canonical(run), sort_keys=False))
        try:
            yield
        except RLDistillError as error:
            if isinstance(error, ConfigError) if shard is not None else _modification_times(run, stages) == times:
                for path, text in old.items():
                    if text is not None:
                        write_text(path, text)
                    elif shard is None:
                        path.unlink()
            raise
        remove_unfinished(run.out.rglob(UNFINISHED))  # of workers that outlived a killed run until after the start


@contextmanager
def record_resumed(runs: Sequence[Run]) -> Iterator[None]:
    """Restore the records of continued runs if their students refuse settings that the stages before them wrote."""
    with ExitStack() as records:
        for run in runs:
            records.enter_context(record_run(run, "resume", "teacher", "dataset", "students", "controls", "tasks"))
        yield


def stage_of_run(stage: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """Return a stage for trackers, and for folders that are the copy of a URL, which it reads first and writes last.

    With the argument `shard`, other processes may work on the same URL; trackers show their work in a later command.
    """

    @functools.wraps(stage)
    def call(run: Run, *args: P.args, **kwargs: P.kwargs) -> T:
        arguments = inspect.signature(stage).bind(run, *args, **kwargs).arguments
        shared = arguments.get("shard") is not None
        with (
            synced(run.out, mirror=not shared),
            nullcontext() if shared else tracked(run, arguments.get("mode", "new")),
        ):
            use_recorded_commits(run)
            return stage(run, *args, **kwargs)

    return call  # type: ignore[return-value]


def use_recorded_commits(run: Run) -> None:
    """Let the teachers of the Hub be those of the commits that an earlier stage of the run recorded."""
    recorded: Any = None
    with suppress(RLDistillError):
        recorded = read_json(run.out / "provenance.json").get("hub")
    for path, commit in recorded.items() if isinstance(recorded, dict) else ():
        if isinstance(commit, str) and COMMIT.fullmatch(commit):
            REVISIONS[path] = commit


def _modification_times(run: Run, stages: tuple[str, ...]) -> dict[Path, int]:
    """Return the modification times of the stages' files, without those that are written before any work."""
    early = (stage_inputs.FILE, "config.yaml", "provenance.json")
    files = [path for stage in stages for path in (run.out / stage).rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files if path.name not in early}


def require_result(file: Path, noun: str, verb: str) -> None:
    """Raise ConfigError if an earlier stage has not written its result."""
    if not file.exists():
        command = f"run_{verb}(run), or `rldistill {verb} FILE`"
        raise ConfigError(f"{file.parent}: there is no {noun} yet. {verb.capitalize()} it first: {command}.")


def policy_runs(folders: Mapping[int, Path], steps: int) -> PolicyRuns:
    """Return the policies of a student, or of its control, in the folders of its training seeds."""
    for path in folders.values():
        require_result(path / "policy.json", "student", "distill")
    return PolicyRuns("student", {seed: load_native(path) for seed, path in folders.items()}, steps)


def student_steps(run: Run, name: str) -> int:
    """Return the environment steps of a student: of the teacher's data, of its own rounds, and from reward."""
    folders = run.policy_folders(name).values()
    steps = [_steps_collected(folder / "dataset") + steps_from_reward(folder) for folder in folders if folder.exists()]
    return _teacher_steps(run) + max(steps, default=0)


def steps_from_reward(folder: Path) -> int:
    """Return the environment steps in which the policy in `folder` learned from reward."""
    return read_document(folder).provenance.env_steps if (folder / "policy.json").exists() else 0


def _teacher_steps(run: Run) -> int:
    return _steps_collected(run.dataset_folder) if run.recipe.needs_dataset else 0


def _steps_collected(folder: Path) -> int:
    return Manifest.read(folder).num_steps if folder.exists() else 0


def training_curves(run: Run) -> dict[str, Curve]:
    """Return mean returns against environment steps for all policies that learned from reward."""
    curves: dict[str, Curve] = {}
    if isinstance(run.teacher, TrainConfig):
        curves["teacher"] = _curve(run.out / "teacher" / "curve.jsonl", "mean", 0)
    for name in run.students:
        curves[name] = _mean_curve(run.policy_folders(name), _teacher_steps(run))
        if run.control != "none":
            curves[name + CONTROL_SUFFIX] = _mean_curve(run.policy_folders(name, "controls"), 0)
    return {name: curve for name, curve in curves.items() if curve}


def _mean_curve(folders: Mapping[int, Path], first_step: int) -> Curve:
    """Return the mean over all training seeds, at the steps at which each seed has a score."""
    seeds = [dict(_curve(folder / "metrics.jsonl", "score", first_step)) for folder in folders.values()]
    common = sorted(set.intersection(*map(set, seeds)))
    return [(steps, sum(scores[steps] for scores in seeds) / len(seeds)) for steps in common]


def _curve(path: Path, column: str, first_step: int) -> Curve:
    return [(first_step + row["step"], row[column]) for row in read_jsonl(path) if row.get(column) is not None]
