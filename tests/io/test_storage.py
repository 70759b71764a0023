"""Storage by URL: runs in a bucket of a server that speaks S3, and addresses that are refused."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, RLDistillError, UntrustedFileError
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.match import FOLDER
from rldistill.evaluation.results import Evaluation
from rldistill.io import storage
from rldistill.io.atomic import discard_stage, write_json
from rldistill.io.execution import Shard
from rldistill.policies.network import NetworkPolicy
from rldistill.recipes.job import Run
from rldistill.run.evaluation import run_evaluate
from rldistill.run.stages import run_collect, run_distill, run_shard
from rldistill.students import Tree

from ..conftest import CARTPOLE, Reports, manifest_bytes

needs_server = pytest.mark.skipif(
    importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None,
    reason="moto[server] is not installed",
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of an S3 server of this machine."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "Running on" in line)
        drain = threading.Thread(target=process.stderr.read)  # or its log fills the pipe, and it waits for ever
        drain.start()
        yield line.split()[-1].removeprefix("http://")
        process.terminate()
        drain.join()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "cache"))
    name = f"bucket-{time.monotonic_ns()}"
    query = f"?endpoint_override={server}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    filesystem, path = fs.FileSystem.from_uri(f"s3://{name}{query}")
    filesystem.create_dir(path)
    return f"s3://{name}/runs/a{query}"


@pytest.fixture(scope="module")
def google_server() -> Iterator[str]:
    """Address of a server of this machine that speaks the protocol of Google Cloud Storage, with one bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    code = "import sys; from gcp_storage_emulator.__main__ import main; sys.exit(main(sys.argv[1:]))"
    options = ["start", f"--host={host}", f"--port={port}", "--in-memory", "--default-bucket=bucket", "--quiet"]
    with subprocess.Popen([sys.executable, "-c", code, *options], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection((host, port), 1).close()
                break
            time.sleep(0.1)
        yield f"{host}:{port}"
        process.terminate()


@pytest.fixture(params=["s3", "gs"])
def any_bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Folder in a bucket of each kind."""
    modules = {"s3": ["moto", "flask"], "gs": ["gcp_storage_emulator"]}[request.param]
    if any(importlib.util.find_spec(module) is None for module in modules):
        pytest.skip(f"{modules[0]} is not installed")
    if request.param == "s3":
        return str(request.getfixturevalue("bucket"))
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "cache"))
    server = request.getfixturevalue("google_server")
    query = f"?scheme=http&endpoint_override={server}&retry_limit_seconds=10"
    return f"gs://anonymous@bucket/{time.monotonic_ns()}/a{query}"


def objects(url: str) -> dict[str, bytes]:
    filesystem, prefix = fs.FileSystem.from_uri(url)
    found = storage._objects(filesystem, prefix)
    return {name: filesystem.open_input_stream(info.path).read() for name, info in found.items()}


def make_run(teacher: NetworkPolicy, out: Any) -> Run:
    collected = CollectConfig(steps=400, block_steps=25, envs_per_stream=4, epsilon=0.3)
    return Run(
        env=CARTPOLE, teacher=teacher, out=out, collect=collected, students={"tree": Tree(3)}, verify=False,
        evaluate=EvaluateConfig(3, videos=False),
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_elsewhere_with_the_same_bytes(
    any_bucket: str, teacher: NetworkPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, run = make_run(teacher, tmp_path / "local"), make_run(teacher, any_bucket)
    run_collect(local, quiet=True)
    real, seen = storage.publish, 0

    def crash(path: Path) -> None:
        """Lose the machine when its third block is written."""
        nonlocal seen
        seen += path.suffix == ".parquet"
        if seen == 3:
            raise KeyboardInterrupt
        real(path)

    with monkeypatch.context() as context:
        context.setattr("rldistill.io.atomic.publish", crash)
        with pytest.raises(KeyboardInterrupt):
            run_collect(run, quiet=True)
    found = objects(any_bucket)
    assert sum(name.endswith(".parquet") for name in found) == 2
    assert b'"blocks": []' in found["dataset/manifest.json"]
    shutil.rmtree(tmp_path / "cache")
    run_collect(run, mode="resume", quiet=True)
    run_distill(run, quiet=True)
    found = objects(any_bucket)
    assert found["dataset/manifest.json"] == manifest_bytes(local.dataset_folder)
    blocks = {name: content for name, content in found.items() if name.endswith(".parquet")}
    assert blocks == {
        f"dataset/{path.relative_to(local.dataset_folder)}": path.read_bytes() for path in local.out.rglob("*.parquet")
    }
    weights = "students/tree/seed-0/policy.safetensors"
    assert {"students/tree/seed-0/policy.json", weights, "config.yaml"} <= {*found}
    assert not [name for name in found if ".tmp." in name or name.endswith(".lock")]
    shutil.rmtree(tmp_path / "cache")
    run_distill(run, mode="resume", quiet=True)  # all is there
    assert {path.name for path in run.out.rglob("policy.*")} == {"policy.json", "policy.safetensors"}
    assert (
        objects(any_bucket)["students/tree/seed-0/policy.safetensors"]
        == found["students/tree/seed-0/policy.safetensors"]
    )


@pytest.mark.slow
def test_copies_follow_changes_of_the_bucket_and_deleted_files_go(any_bucket: str, tmp_path: Path) -> None:
    folder = storage.local_folder(any_bucket)
    for name in ("trial.json", "test.json"):
        write_json(folder / "search" / name, {"value": 1})
    (folder / "page.html").write_text("page")
    storage.push(folder)
    assert {*objects(any_bucket)} == {"search/trial.json", "search/test.json", "page.html"}
    discard_stage(folder / "search")
    assert {*objects(any_bucket)} == {"page.html"}
    filesystem, prefix = fs.FileSystem.from_uri(any_bucket)
    time.sleep(1.1)  # the resolution of the times of S3
    with filesystem.open_output_stream(f"{prefix}/page.html") as stream:
        stream.write(b"PAGE")  # as another machine, of the same size
    (folder / "left.html").write_text("left")
    with storage.synced(folder):
        assert (folder / "page.html").read_text() == "PAGE"
        assert not (folder / "left.html").exists()
        (folder / "page.html").unlink()
        (folder / "new.html").write_text("new")
    assert objects(any_bucket) == {"new.html": b"new"}
    assert storage.fetch(folder / "new.html")
    (folder / "new.html").unlink()
    assert storage.fetch(folder / "new.html")
    assert (folder / "new.html").read_text() == "new"
    assert not storage.fetch(folder / "none.html")


@pytest.mark.slow
def test_shards_on_two_machines_meet_in_the_bucket(any_bucket: str, teacher: NetworkPolicy, tmp_path: Path) -> None:
    local, run = make_run(teacher, tmp_path / "local"), make_run(teacher, any_bucket)
    run_collect(local, quiet=True)
    for number in (1, 2):
        run_shard(run, "collect", Shard(number, 2), quiet=True)
        blocks = {path.name for path in run.out.rglob("*.parquet")}
        assert all(f"stream-00{number - 1}" in name for name in blocks)  # of its own streams alone
        shutil.rmtree(tmp_path / "cache")  # as another machine has none
    run_collect(run, mode="resume", quiet=True)
    assert objects(any_bucket)["dataset/manifest.json"] == manifest_bytes(local.dataset_folder)
    run_distill(run, quiet=True)
    run_distill(local, quiet=True)
    for number in (1, 2, 3):
        shutil.rmtree(tmp_path / "cache")
        run_shard(run, "evaluate", Shard(number, 3), quiet=True)
    shutil.rmtree(tmp_path / "cache")
    found, expected = (run_evaluate(own, "resume", quiet=True) for own in (run, local))
    assert isinstance(found, Evaluation)
    assert isinstance(expected, Evaluation)
    assert {name: own.runs for name, own in found.policies.items()} == {
        name: own.runs for name, own in expected.policies.items()
    }
    assert not [name for name in objects(any_bucket) if FOLDER in name]


@needs_server
@pytest.mark.slow
def test_names_of_objects_never_lead_out_of_the_copy(bucket: str, tmp_path: Path, server: str) -> None:
    filesystem, prefix = fs.FileSystem.from_uri(bucket)
    address = f"http://{server}/{prefix.split('/')[0]}/runs/a/x/%2e%2e/%2e%2e/%2e%2e/evil.txt"
    urllib.request.urlopen(urllib.request.Request(address, b"evil", method="PUT"))
    names = [*storage._objects(filesystem, prefix)]
    if not any(".." in name for name in names):
        pytest.skip("this server resolves such names")
    with pytest.raises(UntrustedFileError, match="leads out of its folder"):
        storage.pull(storage.local_folder(bucket))
    assert not [*tmp_path.rglob("evil.txt")]


@needs_server
@pytest.mark.slow
def test_a_missing_bucket_is_one_line(bucket: str, teacher: NetworkPolicy) -> None:
    run = make_run(teacher, bucket.replace("s3://bucket-", "s3://none-").replace("&allow_bucket_creation=true", ""))
    with pytest.raises(RLDistillError, match=r"^s3://none-\d+/runs/a.*: .*\. Check the address, the network and the"):
        run_collect(run, quiet=True)


def test_folders_of_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: NetworkPolicy) -> None:
    monkeypatch.setenv(storage.CACHE, str(tmp_path))
    assert storage.local_folder("s3://bucket/a/b/") == tmp_path / "s3%3A%2F%2Fbucket%2Fa%2Fb"
    assert storage.local_folder("file:///a%20b/c") == Path("/a b/c")
    assert storage.local_folder("runs/a") == "runs/a"
    assert make_run(teacher, "gs://bucket/run").out == tmp_path / "gs%3A%2F%2Fbucket%2Frun"
    monkeypatch.delenv(storage.CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert storage.local_folder("s3://b/c") == Path("/x/rldistill/s3%3A%2F%2Fb%2Fc")


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("http://host/run", "expected a folder, or s3, gs, abfs, hdfs or file, as in s3://bucket/run"),
        ("s3:///run", "expected a folder"),
        ("file://host/run", "expected a folder"),
        ("s3://key:secret@bucket/run", "a URL with a password would be stored"),
        (f"s3://bucket/{'a' * 300}", "the URL is too long for the name of a folder"),
    ],
)
def test_addresses_that_are_refused(out: str, problem: str, teacher: NetworkPolicy) -> None:
    with pytest.raises(ConfigError, match=rf"^(Run\.)?out: .*{problem}"):
        make_run(teacher, out)


def test_files_outside_of_copies_are_left_alone(tmp_path: Path, teacher: NetworkPolicy) -> None:
    (tmp_path / "a").write_text("a")
    for act in (storage.publish, storage.withdraw, storage.pull, storage.push):
        act(tmp_path / "a")
    assert storage.fetch(tmp_path / "a")
    assert not storage.fetch(tmp_path / "b")
    shown: list[int] = []
    config = dataclasses.replace(make_run(teacher, tmp_path).collect, steps=100)
    collect(CARTPOLE, teacher, config, tmp_path / "data", progress=Reports(lambda done, _: shown.append(done)))
    assert shown[-1] == 104
