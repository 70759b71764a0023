from __future__ import annotations

import json
from pathlib import Path

import pytest

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import read_jsonl
from rldistill.io.metrics import Metrics

ROWS = [{"step": 1, "score": 2.5}, {"step": 20, "score": None}, {"step": 300, "score": -1.0}]


def test_file_cut_at_any_byte_keeps_its_complete_rows(tmp_path: Path) -> None:
    path, text = tmp_path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)
    ends = [index for index, character in enumerate(text) if character == "}"]
    for size in range(len(text) + 1):
        path.write_bytes(text.encode()[:size])
        complete = sum(size > end for end in ends)
        assert read_jsonl(path) == ROWS[:complete]
    Metrics(tmp_path).keep(5)
    Metrics(tmp_path).add({"step": 400})
    assert read_jsonl(path) == [*ROWS, {"step": 400}]


def test_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "none") == []


@pytest.mark.parametrize("line", ["3", '{"ste', "", '{"score": 1.0}', "[" * 100_000, "\0\0", "\xff"])
def test_other_damage_names_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'.encode("latin-1"))
    with pytest.raises(CorruptArtifactError, match=r"^[^\n]*metrics\.jsonl: line 2: [^\n]*--overwrite\.$"):
        read_jsonl(path)
