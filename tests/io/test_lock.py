from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel
from rldistill.core.errors import ConfigError
from rldistill.core.spec import EnvConfig
from rldistill.data.merge import merge
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.evaluate import evaluate
from rldistill.io import lock
from rldistill.io.atomic import Mode
from rldistill.io.lock import is_locked, lock_folder
from rldistill.rl import dqn, ppo
from rldistill.rl.config import DQNConfig, PPOConfig
from rldistill.rl.train_state import LearningTask
from rldistill.students import Mlp, Ridge
from rldistill.teachers.training.config import TrainConfig
from rldistill.teachers.training.train import train_teacher

ENV = EnvConfig("CartPole-v1")
HOLD = """
import sys, time
from pathlib import Path
from rldistill.io.atomic import Mode
from rldistill.io.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    for path in (folder, linked):
        with (
            pytest.raises(ConfigError, match=rf"^{path}: in use by .*, process {process.pid}\. Wait") as error,
            lock_folder(path),
        ):
            pass
        assert "\n" not in str(error.value)
    assert is_locked(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (folder / ".lock").exists()
    assert is_locked(folder) is False
    with lock_folder(folder), lock_folder(linked):
        assert str(os.getpid()) in (folder / ".lock").read_text()
    assert not any(folder.iterdir())


def test_lock_that_is_not_visible_here_is_unknown(tmp_path: Path) -> None:
    assert is_locked(tmp_path) is False
    (tmp_path / ".lock").write_text("another-machine, process 7")  # whose locks this file system may not show
    assert is_locked(tmp_path) is None
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").symlink_to("/dev/zero")
    assert is_locked(tmp_path) is None
    (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")  # which blocks whoever opens it
    assert is_locked(tmp_path) is None


def test_reader_of_the_lock_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that holds the lock at the moment in which a run takes it makes the run wait, not fail."""
    (tmp_path / ".lock").touch()
    reader = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(reader, fcntl.LOCK_EX)
    monkeypatch.setattr(lock.time, "sleep", lambda _: fcntl.flock(reader, fcntl.LOCK_UN))
    with lock_folder(tmp_path):
        assert is_locked(tmp_path)
    os.close(reader)


def test_thread_is_refused_too(tmp_path: Path) -> None:
    errors: list[ConfigError] = []

    def run() -> None:
        try:
            with lock_folder(tmp_path):
                pass
        except ConfigError as error:
            errors.append(error)

    with lock_folder(tmp_path):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len(errors) == 1
    run()
    assert len(errors) == 1


def test_no_empty_folder_is_left(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "a" / "b"):
        pass
    assert not any(tmp_path.iterdir())
    with lock_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "mine"]


def test_stages_called_from_python_take_the_lock(tmp_path: Path) -> None:
    teacher = Mlp((4,)).build(spec_from_env(ENV)).eval()
    data = collect(ENV, teacher, CollectConfig(steps=64, epsilon=0.3), tmp_path / "data", progress=False)
    other = tmp_path / "other"
    collect(ENV, teacher, CollectConfig(steps=64, epsilon=0.3), other, seed=1, progress=False)
    evaluation, train = EvaluateConfig(episodes=2, videos=False), TrainConfig("PPO", 64, 1, 64, 1)
    task = LearningTask(ENV, Mlp((4,)), tmp_path / "out")
    stages: dict[str, Callable[[Path, Mode], object]] = {
        "collect": lambda folder, mode: collect(ENV, teacher, CollectConfig(steps=64), folder, mode=mode),
        "distill": lambda folder, mode: distill(data, Ridge(), DistillConfig(), folder, mode=mode),
        "relabel": lambda folder, mode: relabel(tmp_path / "data", teacher, folder, mode=mode),
        "merge": lambda folder, mode: merge([tmp_path / "data", other], folder, mode=mode),
        "train": lambda folder, mode: train_teacher(ENV, train, folder, mode=mode),
        "evaluate": lambda folder, _: evaluate(ENV, {"teacher": teacher}, evaluation, folder, progress=False),
        "ppo": lambda _, mode: ppo.learn(task, PPOConfig(), mode=mode),
        "dqn": lambda _, mode: dqn.learn(task, DQNConfig(), mode=mode),
    }
    folder = tmp_path / "out"
    folder.mkdir()
    modes: tuple[Mode, ...] = ("new", "overwrite")
    for mode in modes:
        for name, stage in stages.items():
            errors = list[str]()

            def call(stage: Callable[[Path, Mode], object] = stage, mode: Mode = mode) -> None:
                try:
                    stage(folder, mode)
                except ConfigError as error:
                    errors.append(str(error))  # noqa: B023 - the thread ends within the loop

            with lock_folder(folder):
                thread = threading.Thread(target=call)
                thread.start()
                thread.join()
                assert [path.name for path in folder.iterdir()] == [".lock"], name
            assert len(errors) == 1, name
            assert errors[0].startswith(f"{folder}: in use by"), name
    assert stages["evaluate"](folder, "new")
    assert "evaluation.json" in {path.name for path in folder.iterdir()}
    assert not (folder / ".lock").exists()
