"""Refusals of pipes, devices, links and large files wherever a file is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rldistill.core.errors import CorruptArtifactError, UntrustedFileError
from rldistill.data.blocks import read_block
from rldistill.io.atomic import read_json, read_jsonl, seal, sha256_file
from rldistill.io.state_dicts import read_state_dict
from rldistill.io.untrusted import MAX_JSON_BYTES, MAX_WEIGHTS_BYTES
from rldistill.students.storage import load_native
from rldistill.teachers.sb3.load import _read_zip
from rldistill.teachers.sb3.normalizer import read_normalizer

READERS: dict[str, Callable[[Path], Any]] = {
    "policy.json": read_json,
    "metrics.jsonl": read_jsonl,
    "agent.pt": read_state_dict,
    "agent.safetensors": read_state_dict,
    "agent.zip": _read_zip,
    "vecnormalize.pkl": read_normalizer,
    "block.parquet": read_block,
    "block.bin": sha256_file,
}


CONTENT = {"policy.json": seal({"step": 1}), "metrics.jsonl": seal({"step": 1}, None)}


@pytest.mark.parametrize("name", READERS)
def test_pipe_is_refused(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UntrustedFileError, match=rf"/{name}: not a regular file\. Replace it by one\.$"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", ["agent.pt", "vecnormalize.pkl", "block.parquet"])
def test_endless_device_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(UntrustedFileError, match="not a regular file"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", ["policy.json", "metrics.jsonl"])
@pytest.mark.parametrize("target", ["/dev/zero", "../secret"])
def test_link_out_of_the_folder_is_refused(name: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT[name])
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / name
    link.symlink_to(target)
    with pytest.raises(UntrustedFileError, match="a link out of its folder"):
        READERS[name](link)
    link.unlink()
    (tmp_path / "run" / "inside").write_bytes(CONTENT[name])
    link.symlink_to("inside")
    (tmp_path / "linked").symlink_to("run")
    assert READERS[name](tmp_path / "linked" / name) in ({"step": 1}, [{"step": 1}])


@pytest.mark.parametrize("name", ["policy.json", "metrics.jsonl", "agent.pt", "vecnormalize.pkl"])
def test_large_file_is_refused_before_it_is_read(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(max(MAX_JSON_BYTES, MAX_WEIGHTS_BYTES) + 1)  # without content on disk
    with pytest.raises(UntrustedFileError, match=r"1,073,741,825 bytes, above the limit of [\d,]+\. Use a smaller"):
        READERS[name](tmp_path / name)


def test_folder_and_loop_of_links_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "loop.json").symlink_to("loop.json")
    for path in (tmp_path, tmp_path / "loop.json"):
        with pytest.raises(CorruptArtifactError, match="cannot be read"):
            read_json(path)


def test_pipe_in_place_of_a_policy_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "policy.json")
    with pytest.raises(UntrustedFileError, match=r"policy\.json: not a regular file"):
        load_native(tmp_path)
