"""An `evaluation.json` with a hash that fits and parts that do not belong together is refused before the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rldistill.core.errors import CorruptArtifactError
from rldistill.io.atomic import write_json
from rldistill.reporting import write_report

CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "no teacher": lambda whole, _: whole["policies"].pop("teacher"),
    "no runs": lambda _, entry: entry["runs"].clear(),
    "no returns": lambda _, entry: entry["runs"][0]["returns"].clear(),
    "fewer returns": lambda _, entry: entry["runs"][0]["returns"].pop(),
    "no thresholds": lambda whole, _: whole["profile_at"].clear(),
    "more thresholds": lambda whole, _: whole["profile_at"].append(1.0),
    "shorter profile": lambda _, entry: entry["profile"]["low"].clear(),
    "longer profile": lambda _, entry: entry["profile"]["share"].append(0.5),
    "half of a latency": lambda _, entry: entry["latency_us"].pop("p99"),
    "latency of another name": lambda _, entry: entry.update(latency_us={"p50": 1.0, "p98": 2.0}),
    "latency of a batch": lambda _, entry: entry.update(batch_latency_us={"64": {}}),
    "text": lambda _, entry: entry.update(mean="1"),
    "huge integer": lambda _, entry: entry.update(discounted_mean=10**400),
    "depth": lambda whole, _: whole.update(seeds=[[[[[[0]]]]]]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, evaluation: dict[str, Any], name: str) -> None:
    write_json(tmp_path / "evaluation.json", evaluation)
    assert write_report(tmp_path).exists()
    CHANGES[name](evaluation, evaluation["policies"]["small-mlp"])
    write_json(tmp_path / "evaluation.json", evaluation)
    with pytest.raises(CorruptArtifactError, match=r"evaluation\.json: .*Run `rldistill evaluate` again\.$") as error:
        write_report(tmp_path)
    assert str(error.value).isprintable()
