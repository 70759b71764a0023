"""Trackers, which show the curves and results of a run while it goes on: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import yaml

from rldistill.core.errors import ConfigError, MissingExtraError
from rldistill.core.fields import OneOf, invalid, validated_dataclass

Scalars = tuple[int, Mapping[str, float]]
"""A step, and the values at it by their names."""
EVENTS = "events.out.tfevents.0.rldistill"
CONNECT_TIMEOUT_S = 30
MAX_BATCH_METRICS = 1_000
"""Limit of MLflow for the metrics of one request."""
MAX_PARAM_CHARS = 500


@dataclass(frozen=True)
class TrackedRun:
    """Run that a tracker shows.

    Attributes:
        name: Name of the run.
        folder: Folder of the run.
        config: Content of the run file.
        id: Id that the tracker gave to the run before; None for a new run.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    id: str | None


class TrackerSession:
    """Connection of one command to a tracker. The methods do nothing here, and a tracker overrides those that it needs.

    Attributes:
        id: Id with which a later command continues the same run.
        url: Address of the run, if it has one.
    """

    id: str = ""
    url: str = ""

    def log(self, series: str, rows: Sequence[Scalars]) -> None:
        """Add scalars to a series, such as `students/mlp/seed-0` or `evaluation`."""

    def save(self, name: str, path: Path) -> None:
        """Add a file, or a new version of it, under its name within the run, such as `videos/mlp-best.mp4`."""

    def close(self, succeeded: bool) -> None:
        """End the connection."""


class Tracker(ABC):
    """Base class of trackers, which are frozen dataclasses of their settings.

    A run file names a tracker of your own as `module:Class`. Only the main process calls it, from a thread.
    """

    def check(self) -> None:  # noqa: B027 - most trackers have nothing to check
        """Raise, before the run begins, if the tracker cannot be used."""

    @abstractmethod
    def open(self, run: TrackedRun) -> TrackerSession:
        """Connect to the tracker; continue the run with the id `run.id`, if there is one."""


@validated_dataclass
class TensorBoard(Tracker):
    """Event files of TensorBoard beside the files with the metrics: `tensorboard --logdir RUN`."""

    def open(self, run: TrackedRun) -> TrackerSession:
        """Return the writer of the event files."""
        return _TensorBoardSession(run.folder)


class _TensorBoardSession(TrackerSession):
    # Not with the SummaryWriter of PyTorch, which has a thread and an open file for each of perhaps hundreds of series.
    id = "tensorboard"

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun = folder, set[str]()

    def log(self, series: str, rows: Sequence[Scalars]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        path, now, events = self.folder / series.removesuffix("evaluation") / EVENTS, time.time(), []
        if not path.exists():
            events.append(Event(wall_time=now, file_version="brain.Event:2"))
        elif series not in self.begun:  # TensorBoard drops earlier values from this step on
            events.append(Event(wall_time=now, step=rows[0][0], session_log=SessionLog(status=SessionLog.START)))
        self.begun.add(series)
        for step, values in rows:
            summary = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            events.append(Event(wall_time=now, step=step, summary=Summary(value=summary)))
        with path.open("ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())


@validated_dataclass
class Wandb(Tracker):
    """Weights & Biases, also offline (`WANDB_MODE=offline`).

    Attributes:
        project: Project of the run.
        entity: User or team; by default that of the login.
    """

    project: str = "rldistill"
    entity: str | None = None

    def check(self) -> None:
        """Raise MissingExtraError without wandb, ConfigError without a login."""
        _require("wandb")
        import requests
        import wandb

        settings = wandb.setup().settings
        token = settings.api_key or settings.identity_token_file or requests.utils.get_netrc_auth(settings.base_url)
        if settings.mode == "online" and not token:  # else it would ask for a key in a terminal
            raise ConfigError("no login. Run `wandb login`, or set WANDB_MODE=offline")

    def open(self, run: TrackedRun) -> TrackerSession:
        """Start or resume the run at Weights & Biases."""
        return _WandbSession(self, run)


class _WandbSession(TrackerSession):
    def __init__(self, config: Wandb, run: TrackedRun) -> None:
        import wandb

        self.run = wandb.init(
            project=config.project, entity=config.entity, name=run.name, id=run.id, resume="allow", config=run.config,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=CONNECT_TIMEOUT_S, login_timeout=1),
        )  # fmt: skip
        self.id, self.url = self.run.id, "" if self.run.offline else self.run.url or ""

    def log(self, series: str, rows: Sequence[Scalars]) -> None:
        self.run.define_metric(f"{series}/*", step_metric=f"{series}/step")
        for step, values in rows:
            self.run.log({f"{series}/{tag}": value for tag, value in values.items()} | {f"{series}/step": step})

    def save(self, name: str, path: Path) -> None:
        import wandb

        if path.suffix == ".html":
            self.run.log({name: wandb.Html(str(path))})
        elif path.suffix == ".mp4":
            self.run.log({name: wandb.Video(str(path), format="mp4")})
        else:
            artifact = wandb.Artifact(f"{self.id}-{path.name}", type="file")
            artifact.add_file(str(path), name)
            self.run.log_artifact(artifact)

    def close(self, succeeded: bool) -> None:
        self.run.finish(exit_code=0 if succeeded else 1)


@validated_dataclass
class MLflow(Tracker):
    """MLflow, with a server or a folder.

    Attributes:
        experiment: Experiment of the run.
        uri: Server, database, or folder as `file:mlruns`; by default `MLFLOW_TRACKING_URI`, or else that of MLflow.
    """

    experiment: str = "rldistill"
    uri: str | None = None

    def check(self) -> None:
        """Raise MissingExtraError without MLflow."""
        _require("mlflow")

    def open(self, run: TrackedRun) -> TrackerSession:
        """Start or resume the run in MLflow."""
        return _MLflowSession(self, run)


class _MLflowSession(TrackerSession):
    def __init__(self, config: MLflow, run: TrackedRun) -> None:
        # By default a server that cannot be reached is tried again for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(CONNECT_TIMEOUT_S))
        if (config.uri or "").startswith("file:"):  # MLflow asks for this opt-in
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient(config.uri)
        if run.id is not None:
            self.id = run.id
            self.client.update_run(self.id, status="RUNNING")
            return
        experiment = self.client.get_experiment_by_name(config.experiment)
        number = experiment.experiment_id if experiment else self.client.create_experiment(config.experiment)
        self.id = self.client.create_run(number, run_name=run.name).info.run_id
        params = [Param(key, value[:MAX_PARAM_CHARS]) for key, value in _flat(run.config)]
        self.client.log_batch(self.id, params=params[:100])
        self.client.log_text(self.id, yaml.safe_dump(run.config, sort_keys=False), "config.yaml")

    def log(self, series: str, rows: Sequence[Scalars]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1_000)
        metrics = [
            Metric(f"{series}/{tag}", value, now, step) for step, values in rows for tag, value in values.items()
        ]
        for start in range(0, len(metrics), MAX_BATCH_METRICS):
            self.client.log_batch(self.id, metrics[start : start + MAX_BATCH_METRICS])

    def save(self, name: str, path: Path) -> None:
        self.client.log_artifact(self.id, str(path), str(Path(name).parent).removeprefix(".") or None)

    def close(self, succeeded: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if succeeded else "FAILED")


def _require(package: str) -> None:
    spec = find_spec(package)
    if spec is None or spec.origin is None:  # such as the folder `wandb` that an earlier run has left
        raise MissingExtraError(f"track: {package}", package)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings of a run file as text, with the path of each as its name."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, str(value)


TRACKERS: dict[str, type] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}
AnyTracker = Annotated[Tracker, OneOf("name", TRACKERS, methods=("open",))]


def require_different(trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
    """Return trackers; raise an error of pydantic if two are of the same class, whose ids could not be told apart."""
    classes = [type(tracker) for tracker in trackers]
    for number, cls in enumerate(classes):
        if cls in classes[:number]:
            raise invalid("a tracker of this kind is there already. Remove one", str(number))
    return trackers
