"""Feed of the trackers of a run, from the files of its stages: learning curves, evaluations, report and videos.

A thread of the main process reads the files while the stages write them, in whatever processes that is. So the stages
know nothing of trackers, no training waits for a server, and a run that continues sends only rows that are new.
"""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rldistill.core.errors import USER_ERRORS, CorruptArtifactError, MissingExtraError, RLDistillError, error_text
from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.tasks import TasksEvaluation
from rldistill.io import stage_inputs
from rldistill.io.atomic import Mode, read_json, read_jsonl, sha256_file, write_json
from rldistill.io.trackers import Scalars, TrackedRun, TrackerSession
from rldistill.recipes import NAMES
from rldistill.recipes.job import Run

FILE = "tracking.json"
"""Ids of the run in its trackers, and the rows and files that each of them has."""
INTERVAL_S = 10.0
CURVES = ("teacher/curve.jsonl", *(f"{kind}/*/seed-*/{file}" for kind in ("students", "controls")
                                   for file in ("metrics.jsonl", "*/metrics.jsonl")))  # fmt: skip
EVALUATION = "evaluation.json"
RESULTS = (EVALUATION, "report.html", "MODEL_CARD.md", "videos/*.mp4")
TAGS = {
    "return": "rollout/ep_rew_mean",
    "score": "eval/mean_reward",
    "mean": "eval/mean_reward",
    "train_loss": "train/loss",
    "heldout_loss": "eval/loss",
    "agreement": "eval/agreement",
    "updates": "train/n_updates",
    "update": "train/n_updates",
    "seconds": "time/time_elapsed",
}
"""Names of our columns in trackers, those of Stable-Baselines3; any other column is `train/` and its own name."""
_active = threading.local()


@contextmanager
def tracked(run: Run, mode: Mode) -> Iterator[None]:
    """Show the run in its trackers during the block; within another such block, do nothing.

    A tracker that fails is left out from then on, with a warning.

    Raises:
        MissingExtraError: The package of a tracker is not installed.
    """
    if not run.track or getattr(_active, "feed", None) is not None:
        yield
        return
    _active.feed = feed = _Feed(run, mode)
    thread = threading.Thread(target=feed.watch, name="trackers", daemon=True)
    error: BaseException | None = None
    try:
        thread.start()
        yield
    except BaseException as caught:
        error = caught
        raise
    finally:
        _active.feed = None
        feed.stop.set()
        thread.join()
        feed.finish(error)


class _Feed:
    """Trackers of a run, their connections, and the record of the rows and files that they have."""

    def __init__(self, run: Run, mode: Mode) -> None:
        self.run, self.stop = run, threading.Event()
        self.trackers = {NAMES.get(type(tracker), type(tracker).__name__): tracker for tracker in run.track}
        self.sessions: dict[str, TrackerSession] = {}
        self.state: dict[str, Any] = {}
        # Of the results that are about to be discarded nothing is sent to the new run of a tracker.
        self.discarded = {path: _first_line(path) for path in self._find(CURVES)} if mode == "overwrite" else {}
        if mode != "overwrite" and (run.out / FILE).exists():
            try:
                self.state = read_json(run.out / FILE)
            except CorruptArtifactError as problem:
                warnings.warn(f"track: {problem} The trackers begin a new run.", stacklevel=4)
        for name, tracker in [*self.trackers.items()]:
            with self._guard(name):
                if callable(check := getattr(tracker, "check", None)):
                    check()

    def _find(self, patterns: tuple[str, ...]) -> list[Path]:
        folders = [self.run.out, *sorted((self.run.out / "tasks").glob("*/"))]
        return [path for folder in folders for pattern in patterns for path in sorted(folder.glob(pattern))]

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        try:
            yield
        except MissingExtraError:
            raise
        except USER_ERRORS as error:
            self.trackers.pop(name)
            self.sessions.pop(name, None)
            problem = error_text(error).rstrip(".")
            warnings.warn(f"track: {name}: {problem}. The run goes on without this tracker.", stacklevel=2)

    def watch(self) -> None:
        """Send new rows again and again, until the block ends."""
        while not self.stop.wait(INTERVAL_S):
            self.send()

    def send(self, ended: bool = False) -> None:
        """Send the rows and, when the stage has ended, the files that a tracker does not have."""
        curves, files = self._curves(ended), self._results() if ended else {}
        for name in [*self.trackers]:
            state = self.state.setdefault(name, {"id": None, "rows": {}, "files": {}})
            with self._guard(name):
                for series, rows in curves.items():
                    if new := rows[state["rows"].get(series, 0) :]:
                        self._session(name, state).log(series, new)
                        state["rows"][series] = len(rows)
                for file, (path, digest) in files.items():
                    if state["files"].get(file) == digest:
                        continue
                    if path.name == EVALUATION:
                        self._session(name, state).log(file.removesuffix(".json"), [_scores(path)])
                    else:
                        self._session(name, state).save(file, path)
                    state["files"][file] = digest
        if self.sessions:
            write_json(self.run.out / FILE, self.state)

    def _session(self, name: str, state: dict[str, Any]) -> TrackerSession:
        """Return the connection to a tracker, which begins with the first rows: a refused run leaves no trace."""
        if name not in self.sessions:
            config = self.run.document or stage_inputs.canonical(self.run)
            session = self.trackers[name].open(TrackedRun(self.run.name, self.run.out, config, state["id"]))
            self.sessions[name], state["id"] = session, session.id
            if session.url:
                print(f"track: {session.url}")
        return self.sessions[name]

    def _curves(self, ended: bool) -> dict[str, list[Scalars]]:
        """Return the rows of all learning curves by the name of their series, the folder."""
        curves = {}
        for path in self._find(CURVES):
            if not ended and path in self.discarded and _first_line(path) == self.discarded[path]:
                continue
            with suppress(RLDistillError, OSError):  # a file that is written at this moment
                curves[path.parent.relative_to(self.run.out).as_posix()] = [*map(_scalars, read_jsonl(path))]
        return curves

    def _results(self) -> dict[str, tuple[Path, str]]:
        """Return the files of the results, with their hashes, by their names within the run."""
        files = self._find(RESULTS)
        return {path.relative_to(self.run.out).as_posix(): (path, sha256_file(path)) for path in files}

    def finish(self, error: BaseException | None) -> None:
        """Send the rest, unless the run was stopped or refused, and close all connections."""
        if error is None or (isinstance(error, RLDistillError) and self.sessions):
            self.send(ended=True)
        for name, session in [*self.sessions.items()]:
            with self._guard(name):
                session.close(error is None)


def _first_line(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.readline()
    except OSError:
        return b""


def _scalars(row: Mapping[str, Any]) -> Scalars:
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    return int(row["step"]), {TAGS.get(name, f"train/{name}"): float(value) for name, value in numbers.items()}


def _scores(path: Path) -> Scalars:
    """Return the scores of an evaluation at its number of episodes; in several tasks, at 0."""
    if "tasks" in read_json(path):
        scores = TasksEvaluation.read(path).students
        return 0, {f"{name}/mean_score": own.mean.value for name, own in scores.items() if own.mean is not None}
    evaluation, values = Evaluation.read(path), dict[str, float | None]()
    for name, entry in evaluation.policies.items():
        values |= {f"{name}/mean_return": entry.mean.value, f"{name}/parameters": entry.parameters}
        values[f"{name}/normalized_score"] = entry.normalized.value if entry.normalized else None
        values[f"{name}/agreement"], values[f"{name}/env_steps"] = entry.agreement, entry.env_steps
        values |= {f"{name}/{metric}": own.value if own else None for metric, own in entry.metrics.items()}
    return evaluation.episodes, {name: float(value) for name, value in values.items() if value is not None}
