"""State of a run at one moment, from its files alone, while it goes on or afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rldistill.core.errors import ConfigError, RLDistillError, error_text, printable
from rldistill.evaluation.results import Evaluation, next_step, terminal_rows, verdict
from rldistill.evaluation.tables import Rows, number_text, rich_table
from rldistill.evaluation.tasks import TasksEvaluation
from rldistill.io.atomic import parse_rows, read_json
from rldistill.io.lock import is_locked
from rldistill.io.progress_file import FILE, MARK, ProgressRecord, duration_text, part_files, rate_text
from rldistill.io.run_file import command_arguments, read_settings
from rldistill.io.untrusted import read_tail
from rldistill.reporting.sections import LearningCurves, learning_curves, student_folders

T = TypeVar("T")
State = Literal["running", "finished", "stopped", "failed", "idle"]
TAIL_BYTES = 128 << 10
"""Length of the end of a file of metrics that is read."""
STALE_S = 60
"""Age of a progress file at which a run of another machine counts as stopped, if its lock is not visible here."""
MAX_PARTS, MAX_LOG_LINES, MAX_TERMINAL_LINES, MAX_BARS = 32, 12, 5, 24
MIN_COLUMN_WIDTH, REFRESH_S = 70, 2.0
EARLIER = "of an earlier run"
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class RunStatus:
    """State of a run.

    Attributes:
        headline: Sentence on the state.
        step: Text and command of the next step; None without any.
        stages: Name and state of each stage.
        tasks: Current tasks, those of worker processes last.
        evaluated: Title of the evaluation, which shows if it is one of an earlier run in this folder.
        verdict, rows: Result and table of the evaluation; empty without any.
        log: Time and text of the latest lines.
        problems: Files that cannot be shown.
    """

    run: Path
    state: State
    headline: str
    step: tuple[str, str] | None = None
    stages: Sequence[tuple[str, str]] = ()
    tasks: Sequence[ProgressRecord] = ()
    curves: Sequence[LearningCurves] = ()
    students: Sequence[str] = ()
    evaluated: str = "Latest evaluation"
    verdict: str = ""
    rows: Rows = field(default_factory=list)
    log: Sequence[tuple[str, str]] = ()
    problems: Sequence[str] = ()

    def __rich__(self) -> Group:
        return Group(*self._blocks())

    def _blocks(self) -> Iterator[RenderableType]:
        yield Text(printable(str(self.run)), style="bold")
        yield Text(printable(self.headline))
        if self.step is not None:
            yield Text(printable(f"{self.step[0]}: {self.step[1]}"))
        yield Text(", ".join(f"{name}: {state}" for name, state in self.stages), style="dim")
        bars = Table.grid(padding=(0, 1))
        for task in self.tasks:
            text = Text(printable(f"{task.title}: {task_text(task)}"))
            bars.add_row(ProgressBar(task.total or 1, task.done, width=20), text)
        if self.tasks:
            yield bars
        for at, line in self.log[-MAX_TERMINAL_LINES:]:  # before what may be too tall for the terminal
            yield Text(printable(f"{at} {line}"), style="dim")
        yield from _spark_lines(self.curves)
        if self.rows:
            yield from (Text(f"\n{self.evaluated}"), rich_table(self.rows), Text(printable(self.verdict)))
        for problem in self.problems:
            yield Text(printable(f"not shown: {problem}"), style="yellow")


def task_text(task: ProgressRecord) -> str:
    """Return the finished and all units of a task, its rate and the remaining time."""
    if not task.total:
        return "begins"
    left = "" if task.seconds_left is None else f"{duration_text(task.seconds_left)} left"
    score = "" if task.score is None else f"score {task.score:.4g}"
    parts = [f"{task.done:,}/{task.total:,} {task.unit}", rate_text(task.rate, task.unit), left, task.note, score]
    return ", ".join(filter(None, parts))


def _spark_lines(curves: Sequence[LearningCurves]) -> Iterator[RenderableType]:
    """Yield a table of the curves, each with its first and last value and up to `MAX_BARS` bars between."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for found in curves:
        table.add_row(Text(found.title, style="dim"))
        for name, line in found.means.items():
            values = [value for _, value in line[:: -(-len(line) // MAX_BARS)]]
            low, high = min(values), max(values)
            heights = [round((value - low) / (high - low) * (len(BARS) - 1)) if high > low else 0 for value in values]
            ends = [number_text(value, ".4g") for value in dict.fromkeys((line[0][1], line[-1][1]))]
            table.add_row(Text(f"  {printable(name)}"), "".join(BARS[height] for height in heights), " to ".join(ends))
    if table.rows:
        yield table


class RunReader:
    """Reader of a run's state that parses a file again only after a change."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._files: dict[Path, tuple[tuple[int, ...], Any, str]] = {}
        self._problems: dict[str, None] = {}
        if not run.exists():
            raise ConfigError(f"{run}: there is no such folder. Name the folder of a run, such as runs/pong.")
        if not run.is_dir():
            raise ConfigError(f"{run}: a file, expected the folder of a run, such as runs/{run.stem}.")
        if not any((run / name).exists() for name in (MARK, "evaluation.json", "students", "dataset", "teacher")):
            raise ConfigError(f"{run}: it is not the folder of a run. Name the folder `out` of a run file.")

    def status(self) -> RunStatus:
        """Return the state of the run at this moment."""
        self._problems.clear()
        record: ProgressRecord | None = self._read(self.run / FILE, ProgressRecord.read, None)
        locked = is_locked(self.run)
        if locked is None and record is not None:
            locked = record.state == "running" and time.time() - record.updated < STALE_S
        parts = [self._read(path, ProgressRecord.read, None) for path in part_files(self.run)[:MAX_PARTS]]
        tasks = [part for part in (record, *parts) if part is not None and part.state == "running" and locked]
        empty: dict[str, Any] = {}
        settings = self._read(self.run / "config.yaml", lambda path: read_settings(path.parent), empty)
        evaluation = self._read(self.run / "evaluation.json", _read_evaluation, None)
        state, headline = _headline(record, bool(locked), tasks, (self.run / "report.html").exists())
        step = None
        if state in ("stopped", "failed"):
            step = "Continue", f"rldistill {self._verb()} {command_arguments(self.run)} --resume"
        elif isinstance(evaluation, Evaluation) and state != "running":
            step = next_step(evaluation, self.run)
        text, rows = _results(evaluation)
        stages = dict(self._stages(settings, record.started if locked and record else 0))
        names = [*student_folders(self.run)]
        lines = [line for part in (record, *parts) if part is not None for line in part.log]
        return RunStatus(
            self.run, state, headline, step,
            stages=[*stages.items()],
            tasks=tasks,
            curves=[*learning_curves(self.run, names, self._rows)],
            students=names,
            evaluated=f"{'Earlier' if stages['evaluation'] == EARLIER else 'Latest'} evaluation",
            verdict=text,
            rows=rows,
            log=[(_clock(at), text) for at, text in sorted(lines)[-MAX_LOG_LINES:]],
            problems=[*self._problems],  # last, after all files were read
        )  # fmt: skip

    def _read(self, path: Path, read: Callable[[Path], T], default: T) -> T:
        """Return the content of a file, or the default if it is missing or cannot be read, which is a problem."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return default
        except OSError as error:
            self._problems[f"{path}: {error.strerror}"] = None
            return default
        stamp = status.st_mtime_ns, status.st_size, status.st_ino
        before = self._files.get(path)
        if before is None or before[0] != stamp:
            try:
                before = stamp, read(path), ""
            except (RLDistillError, OSError) as error:
                before = stamp, default, error_text(error)
            self._files[path] = before
        if before[2]:
            self._problems[before[2]] = None
        return cast(T, before[1])

    def _rows(self, path: Path) -> list[dict[str, Any]]:
        return self._read(path, lambda path: parse_rows(read_tail(path, self.run, TAIL_BYTES), path), [])

    def _verb(self) -> str:
        """Return the command that began the run, if it can continue it."""
        record: dict[str, Any] = {}
        command = self._read(self.run / MARK, lambda path: read_json(path), record).get("command")
        verb = command[1] if isinstance(command, list) and len(command) > 1 else ""
        return verb if verb in ("train", "collect", "distill", "search") else "run"

    def _stages(self, settings: dict[str, Any], started: float) -> Iterator[tuple[str, str]]:
        """Yield the state of each stage; results that are older than a run that goes on are earlier ones."""
        results = {"teacher": "teacher/policy.json", "data": "dataset/manifest.json"}
        for name, path in results.items():
            if (self.run / path).parent.is_dir():
                yield name, "done" if (self.run / path).exists() else "not yet"
        if students := {key.split(".")[1] for key in settings if key.startswith("students.")}:
            seeds = settings.get("seeds")
            total = len(students) * (len(seeds) if isinstance(seeds, list) else 1)
            done = len([*self.run.glob("students/*/seed-*/policy.json")])
            yield "students", f"{done} of {max(done, total)}"
        for name, path in {"evaluation": "evaluation.json", "report": "report.html"}.items():
            try:
                yield name, "done" if (self.run / path).stat().st_mtime >= started else EARLIER
            except OSError:
                yield name, "not yet"


def _headline(
    record: ProgressRecord | None, locked: bool, tasks: Sequence[ProgressRecord], has_report: bool
) -> tuple[State, str]:
    if locked:
        return "running", f"Running: {tasks[0].title}" if tasks else "Running"
    if record is None:
        return ("finished", "Finished") if has_report else ("idle", "Not running")
    if record.state == "finished":
        return "finished", f"Finished after {duration_text(record.updated - record.started)}"
    where = f"{record.title}: {record.done:,} of {record.total:,} {record.unit}"
    if record.state == "failed":
        return "failed", f"Failed at {where}"
    return "stopped", f"Stopped at {where}"


def _read_evaluation(path: Path) -> Evaluation | TasksEvaluation:
    document = read_json(path, Evaluation.advice)
    kind = TasksEvaluation if "tasks" in document else Evaluation
    return kind.parse(document, path)


def _results(evaluation: Evaluation | TasksEvaluation | None) -> tuple[str, Rows]:
    """Return the verdict and the table of an evaluation."""
    if evaluation is None:
        return "", []
    if isinstance(evaluation, TasksEvaluation):
        return evaluation.verdict, evaluation.rows
    return verdict(evaluation), terminal_rows(evaluation)


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def open_runs(folders: Sequence[Path]) -> list[RunReader]:
    """Return a reader for each folder; raise ConfigError if one is no run, or stands there twice."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("watch: expected different runs, as in `rldistill watch runs/a runs/b`.")
    return [RunReader(folder) for folder in folders]


def show_in_terminal(readers: Sequence[RunReader]) -> None:
    """Show the state of runs, side by side where there is space, until none goes on; without a terminal, once."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.print(*(reader.status() for reader in readers), sep="\n")
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found = [reader.status() for reader in readers]
            table = Table.grid(expand=True, padding=(0, 2))
            is_wide = console.width >= MIN_COLUMN_WIDTH * len(found)
            for _ in found if is_wide else found[:1]:
                table.add_column(ratio=1)
            for row in [found] if is_wide else [[status] for status in found]:
                table.add_row(*row)
            live.update(table, refresh=True)
            if all(status.state != "running" for status in found):
                return
            time.sleep(REFRESH_S)
