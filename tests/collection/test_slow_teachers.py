"""Teachers that take long: one call for each labeled state, labels of some steps, and a limit of time."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rldistill
from rldistill.collection import stream
from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel
from rldistill.core.errors import ConfigError
from rldistill.data.blocks import STEP
from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.episodes import PlayConfig, TeacherQuery, play
from rldistill.io import progress
from rldistill.io.execution import Execution
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Gru, Linear, Tree
from rldistill.teachers.python import FunctionPolicy

from ..conftest import CARTPOLE, manifest_bytes

SMALL = CollectConfig(steps=640, num_streams=2, envs_per_stream=4, block_steps=16)
DAGGER = dataclasses.replace(SMALL, beta=0.0)

MODULE = """
import time

def rule(obs):
    return int(obs[2] + obs[3] > 0)

def hanging_rule(obs):
    if abs(obs[2]) > 0.1:
        time.sleep(60)
    return rule(obs)
"""


def rule(obs: Any) -> int:
    return int(obs[2] + obs[3] > 0)


class Counting:
    """Rule that counts its calls for each observation, and may stop to answer."""

    def __init__(self, hangs_after: int = 10**9, hang: Any = None) -> None:
        self.calls: Counter[bytes] = Counter()
        self.hangs_after, self.hang = hangs_after, hang

    def __call__(self, obs: Any) -> int:
        self.calls[obs.tobytes()] += 1
        if sum(self.calls.values()) > self.hangs_after:
            self.hang()
        return rule(obs)

    @property
    def policy(self) -> FunctionPolicy:
        return FunctionPolicy(self, spec_from_env(CARTPOLE), name="rule")


def student(seed: int = 1) -> NetworkPolicy:
    torch.manual_seed(seed)
    return Linear().build(spec_from_env(CARTPOLE)).eval()


def steps_of(folder: Path) -> dict[str, Any]:
    """Return the columns of all steps."""
    manifest = Manifest.read(folder)
    columns = [manifest.read_block(entry).columns for entry in manifest.blocks]
    return {name: np.concatenate([own[name][own["kind"] == STEP] for own in columns]) for name in columns[0]}


@pytest.mark.parametrize("acts", ["teacher", "student", "both"])
def test_one_call_for_each_labeled_state(acts: str, tmp_path: Path) -> None:
    teacher = Counting()
    config = dataclasses.replace(SMALL, beta={"teacher": 1.0, "student": 0.0, "both": 0.5}[acts])
    collect(CARTPOLE, teacher.policy, config, tmp_path / "data", student=student())
    assert set(teacher.calls.values()) == {1}
    steps = steps_of(tmp_path / "data")
    # the states of all steps, the last ones of episodes, and those after the last step of each slot
    assert len(teacher.calls) == 640 + steps["ended"].sum() + 8


def test_calls_for_some_rows_change_no_byte(tmp_path: Path) -> None:
    batched = FunctionPolicy(lambda obs: (obs[:, 2] + obs[:, 3] > 0).astype(int), spec_from_env(CARTPOLE), True, "rule")
    config = dataclasses.replace(DAGGER, epsilon=0.2)
    for name, teacher in (("rows", Counting().policy), ("batches", batched)):
        collect(CARTPOLE, teacher, config, tmp_path / name, student=student())
    assert manifest_bytes(tmp_path / "rows") == manifest_bytes(tmp_path / "batches")


def test_no_call_for_slots_without_an_episode() -> None:
    teacher = Counting()
    played = play(CARTPOLE, student(), 5, PlayConfig(3), query=TeacherQuery(teacher.policy, lambda step: None))
    assert teacher.calls.total() == played.lengths.sum()


@pytest.mark.parametrize("kind", ["function", "network"])
def test_labels_of_every_fourth_step(kind: str, tmp_path: Path, teacher: NetworkPolicy) -> None:
    counting = Counting()
    policy: Any = counting.policy if kind == "function" else teacher
    config = dataclasses.replace(DAGGER, label_every=4)
    data = collect(CARTPOLE, policy, config, tmp_path / "data", student=student())
    steps = steps_of(tmp_path / "data")
    labeled = steps["labeled"]
    np.testing.assert_array_equal(labeled, (steps["step"] + steps["slot"]) % 4 == 0)
    if kind == "function":
        assert set(counting.calls.values()) == {1}
        assert len(counting.calls) == labeled.sum()
    assert not steps["teacher"][~labeled].any()
    assert (data.sparse, data.num_steps, len(data)) == (True, 640, labeled.sum())
    full = collect(CARTPOLE, policy, DAGGER, tmp_path / "full", student=student())
    np.testing.assert_array_equal(data.columns["teacher"], full.columns["teacher"][labeled])
    np.testing.assert_array_equal(data.columns["return_to_go"], full.columns["return_to_go"][labeled])
    rows, whole = np.arange(len(data)), np.flatnonzero(labeled)
    assert torch.equal(data.observations(rows), full.observations(whole))
    assert torch.equal(data.next_observations(rows), full.next_observations(whole))
    again = relabel(tmp_path / "data", policy, tmp_path / "again", progress=False)
    np.testing.assert_array_equal(again.columns["teacher"], full.columns["teacher"])


def test_where_the_teacher_acts_its_action_is_the_label(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, label_every=4)
    collect(CARTPOLE, Counting().policy, config, tmp_path / "sparse")
    collect(CARTPOLE, Counting().policy, SMALL, tmp_path / "full")
    entries = [[entry.sha256 for entry in Manifest.read(tmp_path / name).blocks] for name in ("sparse", "full")]
    assert entries[0] == entries[1]
    counting, mixed = Counting(), dataclasses.replace(config, beta=0.5, mixture="step")
    collect(CARTPOLE, counting.policy, mixed, tmp_path / "mixed", student=student())
    steps = steps_of(tmp_path / "mixed")
    by_teacher = steps["actor"] == 0
    assert steps["labeled"][by_teacher].all()
    assert 0.5 < steps["labeled"].mean() < 0.75  # half, and a quarter of the other half
    assert len(counting.calls) == steps["labeled"].sum()


def test_sparse_labels_are_learned_with_those_of_other_rounds(tmp_path: Path) -> None:
    collect(CARTPOLE, Counting().policy, SMALL, tmp_path / "data")
    config = dataclasses.replace(DAGGER, label_every=4)
    collect(CARTPOLE, Counting().policy, config, tmp_path / "data", student=student(), round=1, mode="resume")
    data = Dataset.read([tmp_path / "data"])
    assert 640 + 100 < len(data) < 640 + 220
    assert data.num_steps == 1280
    policy = distill(data, Tree(), DistillConfig(), tmp_path / "tree", progress=False)
    sample = data.batch(data.spread(500))
    assert float(policy(sample.obs)[0].agreement(sample.teacher).mean()) > 0.9
    with pytest.raises(ConfigError, match=r"collect\.label_every: a recurrent student needs the label of each step"):
        distill(data, Gru(), DistillConfig(epochs=1), tmp_path / "gru", progress=False)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a module of teachers that other processes can import."""
    (tmp_path / "slow_teachers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("slow_teachers")
    del sys.modules["slow_teachers"]


@pytest.mark.slow
def test_sparse_bytes_are_the_same_for_any_number_of_workers(module: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(DAGGER, label_every=3)
    teacher = FunctionPolicy(module.rule, spec_from_env(CARTPOLE), name="rule")
    for workers in (1, 2):
        execution = Execution(workers=workers)
        collect(CARTPOLE, teacher, config, tmp_path / str(workers), student=student(), execution=execution)
    assert manifest_bytes(tmp_path / "1") == manifest_bytes(tmp_path / "2")


def sleep_through_errors() -> None:
    while True:
        with suppress(Exception):  # as a careless teacher does
            time.sleep(30)


@pytest.mark.parametrize("hang", [lambda: time.sleep(30), sleep_through_errors], ids=["sleeps", "catches"])
@pytest.mark.parametrize("label_every", [1, 3])
def test_a_teacher_that_hangs_ends_the_collection_and_it_goes_on(hang: Any, label_every: int, tmp_path: Path) -> None:
    config = dataclasses.replace(DAGGER, teacher_timeout=0.5, label_every=label_every)
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        collect(
            CARTPOLE,
            Counting(160 if label_every == 1 else 80, hang).policy,
            config,
            tmp_path / "data",
            student=student(),
        )
    assert time.monotonic() - started < 10
    assert re.fullmatch(
        r"collect\.teacher_timeout: the teacher took over 0\.5 s for one decision\. Raise the limit, or use a faster "
        r"teacher\. 128 steps are kept; --resume goes on\.", str(caught.value),
    )  # fmt: skip
    calls = Counting()
    longer = dataclasses.replace(config, teacher_timeout=60.0)
    collect(CARTPOLE, calls.policy, longer, tmp_path / "data", student=student(), mode="resume")
    collect(CARTPOLE, Counting().policy, config, tmp_path / "whole", student=student())
    assert manifest_bytes(tmp_path / "data") == manifest_bytes(tmp_path / "whole")
    assert set(calls.calls.values()) == {1}


@pytest.mark.slow
def test_a_teacher_that_hangs_in_a_worker_ends_the_collection(module: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(DAGGER, teacher_timeout=0.5)
    teacher = FunctionPolicy(module.hanging_rule, spec_from_env(CARTPOLE), name="rule")
    with pytest.raises(ConfigError, match=r"^collect\.teacher_timeout: the teacher took over 0\.5 s"):
        collect(CARTPOLE, teacher, config, tmp_path / "data", student=student(), execution=Execution(workers=2))


def test_only_the_main_thread_can_limit_the_time(tmp_path: Path) -> None:
    errors: list[str] = []

    def run() -> None:
        config = dataclasses.replace(DAGGER, teacher_timeout=0.5)
        try:
            collect(CARTPOLE, Counting().policy, config, tmp_path / "data", student=student())
        except ConfigError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == [
        "collect.teacher_timeout: only the main thread can stop a teacher. Collect there, or with two workers."
    ]


@pytest.mark.slow
def test_c_code_that_hears_no_signal_ends_with_the_process() -> None:
    program = (
        "from rldistill.collection import time_limit as module\n"
        "module.GRACE_S = 0.5\n"
        "with module.time_limit(0.5):\n"
        "    sum(range(10**13))\n"
    )
    path = str(Path(rldistill.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("Timeout")


def test_progress_has_steps_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MIN_DURATION_S", "LINE_INTERVAL_S", "MIN_RATE_INTERVAL_S"):
        monkeypatch.setattr(progress, name, 0.0)
    monkeypatch.setattr(stream, "REPORT_INTERVAL_S", 0.0)
    config = dataclasses.replace(DAGGER, label_every=4)
    with progress.track("distill mlp", "epochs") as task:
        task.update(0, 20)
        with progress.subtask(task, "collect, round 1", "steps") as shown:
            collect(CARTPOLE, Counting().policy, config, tmp_path / "data", student=student(), progress=shown)
        task.update(20, 20)
    lines = capsys.readouterr().err.splitlines()
    details = r"\(.* steps/s, .* s left, \d+ labels, .* labels/s\)"
    assert any(re.fullmatch(rf"collect, round 1: \d+/640 steps {details}", line) for line in lines)
    assert lines[-2].startswith("collect, round 1: 640/640 steps")
    assert lines[-1].startswith("distill mlp: 20/20 epochs")
    assert "labels" not in lines[-1]
