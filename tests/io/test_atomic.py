from __future__ import annotations

import errno
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rldistill.core.errors import ConfigError
from rldistill.io.atomic import open_stage, seal, write_atomic, write_json


def test_temporary_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (tmp_path / "blocks").mkdir()
    stale, live = tmp_path / "blocks" / f".{process.pid}.tmp.a.parquet", tmp_path / f".{os.getpid()}.tmp.policy.json"
    remote = tmp_path / f".{process.pid}@another.example.org.tmp.policy.json"  # of a machine that shares the folder
    own = tmp_path / f".{process.pid}@{platform.node()}.tmp.policy.json"
    for path in (stale, live, remote, own, tmp_path / "policy.json"):
        path.write_text("")
    assert open_stage(tmp_path, tmp_path / "policy.json", "resume")
    assert [path.exists() for path in (stale, live, remote, own)] == [False, True, True, False]
    open_stage(tmp_path, tmp_path / "policy.json", "overwrite")
    assert not remote.exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_network_drives_that_sync_no_folder_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fsync = os.fsync

    def refuse(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(file)

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EIO:  # a broken disk
        with pytest.raises(OSError, match="Input/output error"):
            write_json(tmp_path / "a.json", {})
    else:
        write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").exists()


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    """Safetensors makes files of its own with 0600."""
    (tmp_path / "plain").touch()

    def write(path: Path) -> None:
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    write_atomic(tmp_path / "private", write)
    assert (tmp_path / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode


FOREIGN = [
    "photos/a.jpg",
    "manifest.json",
    "blocks/notes.txt",
    "policy.py",
    "search.json",
    ".env",
    "a.zip",
    "metrics.jsonl",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_never_discarded(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "dataset"
    write_json(folder / "inputs.json", {})
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text('{"name": "my app"}')
    with pytest.raises(ConfigError, match=rf"/{name}: not written by this program, so .* is not discarded\. Move it"):
        open_stage(folder, folder / "policy.json", "overwrite")
    assert (folder / name).read_text() == '{"name": "my app"}'
    assert (folder / "inputs.json").exists()


@pytest.mark.parametrize("target", ["file", "folder"])
def test_links_are_never_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file", tmp_path / "folder" / "policy.json"):
        path.write_bytes(seal({}))
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "policy.json").symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match="not written by this program"):
        open_stage(stage, stage / "policy.json", "overwrite")
    assert (tmp_path / "file").exists()
    assert (tmp_path / "folder" / "policy.json").exists()


def test_files_of_a_stage_are_discarded_though_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    write_json(folder / "policy.json", {"a": "b"})
    (folder / "policy.json").write_bytes((folder / "policy.json").read_bytes()[:-9])
    for name in ("metrics.jsonl", "checkpoints/last.safetensors", "checkpoints/.99.tmp.last.zip", "policy.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert not open_stage(folder, folder / "policy.json", "overwrite")
    assert not any(folder.iterdir())


@pytest.mark.parametrize("folder", ["students", "students/mlp"])
def test_folders_of_several_stages_are_not_discarded(tmp_path: Path, folder: str) -> None:
    result = tmp_path / "students/mlp/seed-0/policy.json"
    write_json(result, {})
    with pytest.raises(ConfigError, match=r"students.*holds the results of several stages, such as .*seed-0, and"):
        open_stage(tmp_path / folder, tmp_path / folder / "policy.json", "overwrite")
    assert result.exists()
    assert not open_stage(result.parent, result, "overwrite")
    assert not result.exists()
