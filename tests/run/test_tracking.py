"""Trackers: rows, scores and files of a run, sent once each, whatever happens to the run or to the tracker."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rldistill.core.errors import ConfigError, MissingExtraError
from rldistill.io.atomic import Mode, read_json
from rldistill.io.metrics import Metrics
from rldistill.io.trackers import MLflow, TensorBoard, TrackedRun, Tracker, TrackerSession, Wandb
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Run, StudentJob
from rldistill.run import tracking
from rldistill.run.config import read_run
from rldistill.run.stages import run_all, run_distill, run_evaluate
from rldistill.run.tracking import FILE, tracked
from rldistill.students.storage import save_policy

MLP = "students/mlp/seed-0"
Sent = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Memory(Tracker):
    """Tracker that keeps what it is sent, and raises an error at the call `fails`."""

    fails: str = ""
    sent: ClassVar[Sent] = []

    def check(self) -> None:
        if self.fails == "check":
            raise ConfigError("no login. Log in")

    def open(self, run: TrackedRun) -> TrackerSession:
        if self.fails == "open":
            raise ConnectionError("no route to host")
        return _MemorySession(self, run)


class _MemorySession(TrackerSession):
    def __init__(self, config: Memory, run: TrackedRun) -> None:
        self.config, self.sent = config, config.sent
        self.id = run.id or f"id-{len([row for row in self.sent if row[0] == 'open'])}"
        self.sent.append(("open", run.id, run.name))

    def log(self, series: str, rows: Any) -> None:
        if self.config.fails == "log":
            raise ConnectionError("lost")
        self.sent.extend(("log", series, step, dict(values)) for step, values in rows)

    def save(self, name: str, path: Path) -> None:
        assert path.is_file()
        self.sent.append(("save", name))

    def close(self, succeeded: bool) -> None:
        self.sent.append(("close", succeeded))


@pytest.fixture
def sent() -> Sent:
    Memory.sent.clear()
    return Memory.sent


def a_run(out: Path, *trackers: Tracker, **changes: Any) -> Run:
    document = {"env": {"id": "CartPole-v1"}, "teacher": "zoo:cartpole-ppo", "name": "own", "out": str(out)}
    return replace(read_run(document | changes), track=trackers)


def train(run: Run, *steps: int, folder: str = MLP) -> None:
    (run.out / folder).mkdir(parents=True, exist_ok=True)
    for step in steps:
        Metrics(run.out / folder).add({"step": step, "train_loss": 1 / step, "score": None})


def show(run: Run, mode: Mode, *steps: int) -> None:
    with tracked(run, mode):
        train(run, *steps)


def steps(sent: Sent) -> list[tuple[str, int]]:
    return [(row[1], row[2]) for row in sent if row[0] == "log"]


def test_rows_are_sent_once_also_when_a_run_continues(tmp_path: Path, sent: Sent) -> None:
    run = a_run(tmp_path, Memory())
    with tracked(run, "new"):
        train(run, 1, 2)
    train(run, 4, folder=f"{MLP}/round-1")
    with tracked(run, "resume"), tracked(run, "resume"):  # a stage within another
        train(run, 3)
    assert sent == [
        ("open", None, "own"),
        ("log", MLP, 1, {"train/loss": 1.0}),
        ("log", MLP, 2, {"train/loss": 0.5}),
        ("close", True),
        ("open", "id-0", "own"),
        ("log", MLP, 3, {"train/loss": 1 / 3}),
        ("log", f"{MLP}/round-1", 4, {"train/loss": 0.25}),
        ("close", True),
    ]
    with tracked(run, "resume"):
        pass
    assert len(sent) == 8  # nothing new, so no connection


def test_rows_are_sent_while_a_stage_goes_on(tmp_path: Path, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "INTERVAL_S", 0.01)
    run = a_run(tmp_path, Memory())
    with tracked(run, "new"):
        for step in (1, 2):
            train(run, step)
            while (MLP, step) not in steps(sent):
                pass
    assert steps(sent) == [(MLP, 1), (MLP, 2)]


def test_overwritten_run_is_a_new_one_without_the_discarded_rows(
    tmp_path: Path, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path, Memory())
    with tracked(run, "new"):
        train(run, 1, 2)
    sent.clear()
    monkeypatch.setattr(tracking, "INTERVAL_S", 0.01)
    with tracked(run, "overwrite"):
        train(run, 99, folder="students/other/seed-0")
        while ("students/other/seed-0", 99) not in steps(sent):
            pass
        (tmp_path / MLP / "metrics.jsonl").unlink()
        train(run, 5)
    assert sent[0] == ("open", None, "own")
    assert steps(sent) == [("students/other/seed-0", 99), (MLP, 5)]


@pytest.mark.parametrize("error", [ConfigError, KeyboardInterrupt])
def test_refused_or_stopped_run_leaves_no_trace(error: type[BaseException], tmp_path: Path, sent: Sent) -> None:
    run = a_run(tmp_path / "run", Memory())
    train(run, 1)
    with pytest.raises(error), tracked(run, "new"):
        raise error
    assert sent == []
    assert not (tmp_path / "run" / FILE).exists()


@pytest.mark.parametrize(("fails", "problem"), [("check", "no login"), ("open", "no route"), ("log", "lost")])
def test_tracker_that_fails_is_left_out_with_one_warning(fails: str, problem: str, tmp_path: Path, sent: Sent) -> None:
    run = a_run(tmp_path, Memory(fails), TensorBoard())
    with (
        pytest.warns(UserWarning, match=rf"track: Memory: {problem}.*\. The run goes on without") as caught,
        tracked(run, "new"),
    ):
        train(run, 1)
    assert len(caught) == 1
    assert steps(sent) == []
    assert scalars(tmp_path / MLP, "train/loss") == [(1, 1.0)]
    with tracked(a_run(tmp_path, Memory(), TensorBoard()), "resume"):
        pass
    assert steps(sent) == [(MLP, 1)]  # which it has missed
    assert scalars(tmp_path / MLP, "train/loss") == [(1, 1.0)]


def test_changed_record_begins_a_new_run(tmp_path: Path, sent: Sent) -> None:
    run = a_run(tmp_path, Memory())
    with tracked(run, "new"):
        train(run, 1)
    (tmp_path / FILE).write_text("{}")
    with (
        pytest.warns(UserWarning, match=r"track: .*tracking\.json: .*\. The trackers begin a new run"),
        tracked(run, "resume"),
    ):
        pass
    assert [row[1] for row in sent if row[0] == "open"] == [None, None]


def test_trackers_of_a_kind_are_refused_twice() -> None:
    document = {"env": {"id": "CartPole-v1"}, "teacher": "zoo:cartpole-ppo"}
    with pytest.raises(ConfigError, match=r"track\.1: a tracker of this kind is there already"):
        read_run(document | {"track": ["wandb", {"name": "wandb", "project": "own"}]})
    with pytest.raises(ConfigError, match=r"track\.0\.name: there is no 'wandbb'\. Did you mean 'wandb'"):
        read_run(document | {"track": ["wandbb"]})


@pytest.mark.parametrize(("tracker", "package"), [(Wandb(), "wandb"), (MLflow(), "mlflow")])
def test_missing_package_is_an_error_at_once(
    tracker: Tracker, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rldistill.io.trackers.find_spec", lambda name: None)
    with (
        pytest.raises(MissingExtraError, match=rf"track: {package} .*'rldistill\[{package}\]'"),
        tracked(a_run(tmp_path, tracker), "new"),
    ):
        raise AssertionError


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in found.Scalars(name)] if name in found.Tags()["scalars"] else []


def test_tensorboard_shows_the_columns_under_the_names_of_sb3(tmp_path: Path) -> None:
    run = a_run(tmp_path, TensorBoard())
    with tracked(run, "new"):
        train(run, 10, 20)
        (tmp_path / "teacher").mkdir()
        Metrics(tmp_path / "teacher", "curve.jsonl").write([{"step": 5, "mean": 2.0, "entropy": 0.5, "extra": [1.0]}])
    assert scalars(tmp_path / MLP, "train/loss") == [(10, pytest.approx(0.1)), (20, pytest.approx(0.05))]
    assert scalars(tmp_path / "teacher", "eval/mean_reward") == [(5, 2.0)]
    assert scalars(tmp_path / "teacher", "train/entropy") == [(5, 0.5)]
    assert scalars(tmp_path / MLP, "eval/mean_reward") == []
    (tmp_path / FILE).unlink()  # a kill before it was written: the rows come again, in place of the first
    with tracked(run, "resume"):
        pass
    assert scalars(tmp_path / MLP, "train/loss") == [(10, pytest.approx(0.1)), (20, pytest.approx(0.05))]


@pytest.mark.slow
def test_whole_run_is_shown_with_scores_and_files(tmp_path: Path, teacher: NetworkPolicy, sent: Sent) -> None:
    save_policy(teacher, tmp_path / "teacher", {})
    settings = {
        "teacher": str(tmp_path / "teacher"), "verify": False, "seeds": [0, 1],
        "collect": {"steps": 600, "epsilon": 0.3},
        "distill": {"epochs": 6, "batch_size": 32, "learning_rate": 0.01},
        "students": {"mlp": {"type": "mlp", "hidden": [8]}}, "evaluate": {"episodes": 2},
    }  # fmt: skip
    run = a_run(tmp_path / "run", Memory(), **settings)
    assert StudentJob(run, teacher, None, "mlp", 0).in_one_process().run.track == ()  # of other processes
    run_all(run, quiet=True)
    series = {name for name, _ in steps(sent)}
    assert series == {MLP, "students/mlp/seed-1", "evaluation"}
    (scores,) = [row for row in sent if row[:2] == ("log", "evaluation")]
    document = read_json(run.out / "evaluation.json")["policies"]
    assert scores[2] == 2
    assert scores[3]["teacher/normalized_score"] == 1
    assert scores[3]["mlp/mean_return"] == document["mlp"]["mean"]["value"]
    assert {row[1] for row in sent if row[0] == "save"} >= {"report.html", "MODEL_CARD.md", "videos/mlp-best.mp4"}
    assert [row for row in sent if row[0] in ("open", "close")] == [("open", None, "own"), ("close", True)]
    more = replace(run, evaluate=replace(run.evaluate, episodes=3, videos=False))
    sent.clear()
    run_distill(more, "resume", quiet=True)
    run_evaluate(more, "resume", quiet=True)
    assert steps(sent) == [("evaluation", 3)]


OWN = """
import json
from dataclasses import dataclass

@dataclass(frozen=True)
class Lines:
    file: str

    def open(self, run):
        return Writer(self.file)

class Writer:
    id, url = "lines", "file://lines"

    def __init__(self, file):
        self.file = file

    def log(self, series, rows):
        with open(self.file, "a") as file:
            print(json.dumps([series, *rows]), file=file)

    def save(self, name, path):
        pass

    def close(self, succeeded):
        pass
"""


def test_tracker_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "own_tracker.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_tracker", raising=False)
    track = [{"name": "own_tracker:Lines", "file": str(tmp_path / "lines")}]
    document = {"env": {"id": "CartPole-v1"}, "teacher": "zoo:cartpole-ppo", "out": str(tmp_path / "run")}
    run = read_run(document | {"track": track})
    with tracked(run, "new"):
        train(run, 2)
    assert json.loads((tmp_path / "lines").read_text()) == [MLP, [2, {"train/loss": 0.5}]]
    assert capsys.readouterr().out == "track: file://lines\n"
    with pytest.raises(ConfigError, match="no dataclass"):
        read_run(document | {"track": ["own_tracker:Writer"]})


def tracked_run(tmp_path: Path, tracker: Tracker) -> Run:
    """Send a curve in one command, and another row, a page and a video in a second; return the run."""
    run = a_run(tmp_path / "run", tracker)
    with tracked(run, "new"):
        train(run, 1, 2)
    train(run, 3)
    (run.out / "report.html").write_text("<p>kept</p>")
    (run.out / "videos").mkdir()
    (run.out / "videos" / "mlp-best.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    with tracked(run, "resume"):
        pass
    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the package
def test_mlflow_has_one_run_with_curve_config_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # restored afterwards
    uri = (tmp_path / "mlruns").as_uri()
    run = tracked_run(tmp_path, MLflow("own", uri))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("own")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == read_json(run.out / FILE)["mlflow"]["id"]
    assert (found.info.run_name, found.info.status) == ("own", "FINISHED")
    assert found.data.params["env.id"] == "CartPole-v1"
    history = client.get_metric_history(found.info.run_id, f"{MLP}/train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"config.yaml", "report.html", "videos"}
    assert [file.path for file in client.list_artifacts(found.info.run_id, "videos")] == ["videos/mlp-best.mp4"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_goes_on_with_its_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wandb.teardown()
    run = tracked_run(tmp_path, Wandb("own"))
    wandb.teardown()
    number = read_json(run.out / FILE)["wandb"]["id"]
    folders = [path.name for path in sorted((tmp_path / "wandb").glob("offline-run-*"))]
    assert len(folders) == 2
    assert all(name.endswith(f"-{number}") for name in folders)
    files = {path.suffix for path in (tmp_path / "wandb").glob("offline-run-*/files/media/**/*")}
    assert {".html", ".mp4"} <= files
    assert not [path for path in run.out.rglob("*") if path.is_symlink()]  # which a report would refuse


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_without_a_login_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    with (
        pytest.warns(UserWarning, match=r"track: wandb: no login\. Run `wandb login`, or set WANDB_MODE=offline"),
        tracked(a_run(tmp_path / "run", Wandb()), "new"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_server_of_mlflow_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = a_run(tmp_path / "run", MLflow(uri="http://127.0.0.1:9"))
    with (
        pytest.warns(UserWarning, match=r"track: mlflow: .*127\.0\.0\.1.*\. The run goes on without this tracker"),
        tracked(run, "new"),
    ):
        train(run, 1)
