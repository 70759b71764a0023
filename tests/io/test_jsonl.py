from __future__ import annotations

from pathlib import Path

import pytest

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import read_jsonl, seal
from rldistill.io.metrics import Metrics

ROWS = [{"step": 1, "score": 2.5}, {"step": 20, "score": None}, {"step": 300, "score": -1.0}]


def test_file_cut_at_any_byte_keeps_its_complete_rows(tmp_path: Path) -> None:
    path, content = tmp_path / "metrics.jsonl", b"".join(seal(row, None) for row in ROWS)
    ends = [index for index, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        assert read_jsonl(path) == ROWS[: sum(size > end for end in ends)]
    Metrics(tmp_path).keep(3)
    Metrics(tmp_path).add({"step": 400})
    assert read_jsonl(path) == [*ROWS, {"step": 400}]
    with pytest.raises(CorruptArtifactError, match=r"metrics\.jsonl: found 4 rows, expected at least 5\. Start again"):
        Metrics(tmp_path).keep(5)


def test_file_of_a_finished_stage_is_whole(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.keep(0)
    for row in ROWS:
        metrics.add(row)
    metrics.end()
    (tmp_path / "policy.json").touch()
    assert read_jsonl(metrics.path) == ROWS
    content = metrics.path.read_bytes()
    for size in range(len(content)):
        metrics.path.write_bytes(content[:size])
        with pytest.raises(CorruptArtifactError, match=r"^[^\n]*metrics\.jsonl: its last rows are missing\. Start"):
            read_jsonl(metrics.path)
    lines = content.splitlines(keepends=True)
    for odd in ([lines[0], *lines[2:]], [lines[0], *lines]):
        metrics.path.write_bytes(b"".join(odd))
        with pytest.raises(CorruptArtifactError, match=r"line \d: found \d rows, expected 3"):
            read_jsonl(metrics.path)


def test_numbers_without_json_are_none(tmp_path: Path) -> None:
    Metrics(tmp_path).write([{"step": 1, "loss": float("nan"), "score": float("inf")}])
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None, "score": None}]


def test_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "none") == []


ODD = [b"3\n", b'{"ste\n', b"\n", b'{"step": 1}\n', b"[" * 100_000 + b"\n", b"\0\0\n", b"\xff\n"]
ODD += [seal(row, None) for row in ({"score": 1.0}, {"step": "1"}, {"step": 1, "score": "x"}, {"step": 1, "a": {}})]
ODD += [seal({"step": 1.5}, None), seal({"step": True}, None), seal({"step": 1}, None).replace(b"1}", b"2}")]


@pytest.mark.parametrize("line", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("last", [True, False])
def test_other_damage_names_its_line(tmp_path: Path, line: bytes, last: bool) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(seal({"step": 1}, None) + line + (b"" if last else seal({"step": 3}, None)))
    with pytest.raises(CorruptArtifactError, match=r"^[^\n]*metrics\.jsonl: [^\n]*--overwrite\)\.$"):
        read_jsonl(path)
