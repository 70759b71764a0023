"""Runs whose jobs are in several processes, or in shards: the same results as in one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rldistill.collection.collect import seal
from rldistill.collection.stream import run_streams
from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.evaluation.match import FOLDER
from rldistill.io import progress
from rldistill.io.execution import SERIAL, Shard, run_jobs
from rldistill.io.lock import lock_folder
from rldistill.policies.network import NetworkPolicy
from rldistill.run.config import read_run
from rldistill.run.evaluation import run_evaluate
from rldistill.run.stages import run_all, run_collect, run_distill, run_shard
from rldistill.students.storage import save_policy

from ..conftest import manifest_bytes

pytestmark = pytest.mark.slow


def document(tmp_path: Path, teacher: NetworkPolicy, **changes: Any) -> dict[str, Any]:
    if not (tmp_path / "teacher").exists():
        save_policy(teacher, tmp_path / "teacher", {})
    return {
        "env": {"id": "CartPole-v1"},
        "teacher": str(tmp_path / "teacher"),
        "collect": {"steps": 1_200, "epsilon": 0.3, "block_steps": 64, "envs_per_stream": 4},
        "students": {"tree": {"type": "tree", "max_depth": 3}},
        "seeds": [0, 1],
        "recipe": {"name": "dagger", "steps_per_round": 400},
        "distill": {"losses": ["action_nll"]},
        "evaluate": {"episodes": 4, "videos": False},
        "verify": False,
        **changes,
    }


def results(out: Path) -> dict[str, str]:
    """Return the hashes of all blocks and weights, and the evaluation without measured times."""
    files = [*out.rglob("*.parquet"), *out.rglob("policy.safetensors"), *out.rglob("manifest.json")]
    found = {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    evaluation = json.loads((out / "evaluation.json").read_text())
    for entry in evaluation["policies"].values():
        del entry["latency_us"], entry["batch_latency_us"]
    del evaluation["sha256"]
    return found | {"evaluation": json.dumps(evaluation)}


def test_a_run_in_processes_has_the_results_of_one_process(tmp_path: Path, teacher: NetworkPolicy) -> None:
    found = []
    for workers in (1, 2):
        changes = {"out": str(tmp_path / str(workers)), "execution": {"workers": workers}}
        run_all(read_run(document(tmp_path, teacher, **changes)), quiet=True)
        found.append(results(tmp_path / str(workers)))
    assert len(found[0]) > 6
    assert found[0] == found[1]


OWN_STUDENT = """
from dataclasses import dataclass
from torch import nn
from rldistill import NetworkPolicy, PolicySpec, Student

@dataclass(frozen=True)
class Gated(Student):
    size: int = 4

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        return NetworkPolicy(self, spec, nn.Sequential(nn.Linear(4, 2 * self.size), nn.GLU()), self.size)
"""


@pytest.mark.parametrize("recipe", ["offline", "dagger"])
def test_a_resumed_run_reads_students_of_own_classes_in_processes(
    recipe: str, tmp_path: Path, teacher: NetworkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"gated_{recipe}.py").write_text(OWN_STUDENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = {"name": recipe} | ({"steps_per_round": 400} if recipe == "dagger" else {})
    changes = {"students": {"own": {"type": f"gated_{recipe}:Gated"}}, "recipe": asked, "execution": {"workers": 2}}
    fit = {"epochs": 5, "batch_size": 64, "learning_rate": 0.02, "losses": ["action_nll"]}
    run = read_run(document(tmp_path, teacher, out=str(tmp_path / "out"), distill=fit, **changes))
    run_collect(run, quiet=True)
    run_distill(run, quiet=True)
    before = {path: path.read_bytes() for path in run.out.rglob("policy.safetensors")}
    run_distill(run, mode="resume", quiet=True)
    assert before == {path: path.read_bytes() for path in run.out.rglob("policy.safetensors")}
    assert len(before) >= 2


def test_shards_have_the_bytes_of_one_collection(tmp_path: Path, teacher: NetworkPolicy) -> None:
    changes = {"students": {}, "collect": {"steps": 800, "num_streams": 3, "block_steps": 32, "envs_per_stream": 2}}
    changes["collect"]["epsilon"] = 0.3  # type: ignore[index]
    whole = read_run(document(tmp_path, teacher, out=str(tmp_path / "whole"), **changes))
    run_collect(whole, quiet=True)
    run = dataclasses.replace(whole, out=tmp_path / "shards")
    run_shard(run, "collect", Shard(2, 2), quiet=True)
    with pytest.raises(CorruptArtifactError, match=r"10 of 15 blocks are missing, those of the streams 0, 2, counted"):
        seal(run.dataset_folder)
    with pytest.raises(CorruptArtifactError, match="the collection is not complete"):
        run.read_dataset()
    with lock_folder(run.dataset_folder, shared=True):  # as another shard
        run_shard(run, "collect", Shard(1, 2), quiet=True)
        with pytest.raises(ConfigError, match="in use by"), ThreadPoolExecutor() as pool:
            pool.submit(seal, run.dataset_folder).result()
    seal(run.dataset_folder)
    assert manifest_bytes(run.dataset_folder) == manifest_bytes(whole.dataset_folder)
    seal(run.dataset_folder)
    run_shard(run, "collect", Shard(1, 2), quiet=True)  # nothing is left to do
    assert manifest_bytes(run.dataset_folder) == manifest_bytes(whole.dataset_folder)
    assert len(run.read_dataset()) == len(whole.read_dataset())
    assert not (run.out / ".lock").exists()
    for count in (1, 4):  # of four, one has nothing to do
        divided = dataclasses.replace(whole, out=tmp_path / str(count))
        for number in range(1, count + 1):
            run_shard(divided, "collect", Shard(number, count), quiet=True)
        seal(divided.dataset_folder)
        assert manifest_bytes(divided.dataset_folder) == manifest_bytes(whole.dataset_folder)
    other = dataclasses.replace(run, collect=dataclasses.replace(run.collect, epsilon=0.5))
    with pytest.raises(ConfigError, match=r"epsilon was 0\.3, now it is 0\.5"):
        run_shard(other, "collect", Shard(1, 2), quiet=True)


def test_shards_of_fits_divide_students_and_seeds(tmp_path: Path, teacher: NetworkPolicy) -> None:
    changes = {"out": str(tmp_path / "out"), "recipe": "offline", "seeds": [0, 1, 2]}
    run = read_run(document(tmp_path, teacher, **changes))
    run_collect(run, quiet=True)
    made = [{"seed-0", "seed-2"}, {"seed-0", "seed-1", "seed-2"}]
    for number in (1, 2):
        run_shard(run, "distill", Shard(number, 2), quiet=True)
        assert {path.parent.name for path in run.out.rglob("policy.json")} == made[number - 1]


def test_shards_of_an_evaluation_have_its_results(tmp_path: Path, teacher: NetworkPolicy) -> None:
    made = []
    for name in ("whole", "shards"):
        run = read_run(document(tmp_path, teacher, out=str(tmp_path / name), recipe="offline"))
        run_collect(run, quiet=True)
        run_distill(run, "resume", quiet=True)
        for number in (1, 2) if name == "shards" else ():
            run_shard(run, "evaluate", Shard(number, 2), quiet=True)
            assert not (run.out / "evaluation.json").exists()
        if name == "shards":
            assert len([*(run.out / FOLDER).iterdir()]) == 4  # teacher, both students, random play
        run_all(run, "resume", quiet=True)
        assert not (run.out / FOLDER).exists()
        made.append(results(run.out))
    assert made[0] == made[1]
    run_shard(run, "evaluate", Shard(1, 2), quiet=True)
    run_evaluate(run, "overwrite", quiet=True)
    assert not (run.out / FOLDER).exists()


def test_progress_of_several_fits_counts_their_epochs(
    tmp_path: Path, teacher: NetworkPolicy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs run in this process, as other tests show those of several."""

    def run_here(work: Any, items: Any, execution: Any, report: Any, uses_gpu: bool) -> Any:
        return run_jobs(work, items, SERIAL, report, uses_gpu)

    monkeypatch.setattr(progress, "MIN_DURATION_S", 0.0)
    monkeypatch.setattr("rldistill.run.jobs.run_jobs", run_here)
    students = {"tree": {"type": "tree", "max_depth": 3}, "mlp": {"type": "mlp", "hidden": [8]}}
    fit = {"epochs": 3, "batch_size": 128, "learning_rate": 0.01, "losses": ["action_nll"]}
    changes = {"out": str(tmp_path / "out"), "students": students, "distill": fit, "execution": {"workers": 2}}
    run = read_run(document(tmp_path, teacher, **changes))
    run_collect(run, quiet=True)
    run_distill(run)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distill: ")]
    # two students with two seeds, each with 2 rounds of 3 epochs
    assert lines[-1].startswith("distill: 24/24 epochs")


def test_refused_shard_does_not_change_the_record(tmp_path: Path, teacher: NetworkPolicy) -> None:
    settings = {"out": str(tmp_path / "run"), "collect": {"steps": 100, "num_streams": 2}}
    run = read_run(document(tmp_path, teacher, **settings))
    run_shard(run, "collect", Shard(1, 2), quiet=True)
    before = (run.out / "config.yaml").read_bytes()
    other = read_run(document(tmp_path, teacher, **settings, seed=1))
    with pytest.raises(ConfigError, match="seed was 0, now it is 1"):
        run_shard(other, "collect", Shard(2, 2), quiet=True)
    assert (run.out / "config.yaml").read_bytes() == before


def test_what_a_killed_run_did_not_finish_is_removed(tmp_path: Path, teacher: NetworkPolicy) -> None:
    run = read_run(document(tmp_path, teacher, out=str(tmp_path / "run"), collect={"steps": 64, "epsilon": 0.3}))
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    run.out.mkdir()
    (run.out / f".{process.pid}@{platform.node()}.tmp.config.yaml").touch()
    (run.out / f".{os.getpid()}@{platform.node()}.tmp.evaluation.json").touch()
    run_collect(run, quiet=True)
    assert [path.name for path in run.out.glob(".*.tmp.*")] == [f".{os.getpid()}@{platform.node()}.tmp.evaluation.json"]


def test_what_a_worker_of_a_killed_run_leaves_later_is_removed(
    tmp_path: Path, teacher: NetworkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(document(tmp_path, teacher, out=str(tmp_path / "run"), collect={"steps": 64, "epsilon": 0.3}))
    blocks, worker = run.out / "dataset" / "blocks", subprocess.Popen(["sleep", "60"])

    def end_worker(*arguments: Any) -> Any:
        blocks.mkdir(exist_ok=True)
        (blocks / f".{worker.pid}@{platform.node()}.tmp.x.parquet").touch()
        worker.kill()
        worker.wait()
        return run_streams(*arguments)

    monkeypatch.setattr("rldistill.collection.collect.run_streams", end_worker)
    run_collect(run, quiet=True)
    assert {path.name[:5] for path in blocks.iterdir()} == {"round"}


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/b", "-1/4", "1/0"])
def test_shards_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--shard: found '?[\w/-]+'?, expected a number"):
        Shard.parse(text)


def test_address_without_ray_is_refused() -> None:
    document = {"env": {"id": "CartPole-v1"}, "teacher": "zoo:x", "execution": {"address": "auto"}}
    with pytest.raises(ConfigError, match=r"execution\.address: only Ray has one\. Use backend: ray"):
        read_run(document)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_every_item_is_in_one_shard(count: int) -> None:
    parts = [Shard(number, count).select(range(5)) for number in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == [*range(5)]
