"""The model card, as the Hub's parser and a reader of Markdown see it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rldistill.evaluation.results import Evaluation, verdict
from rldistill.io.atomic import write_json
from rldistill.reporting import write_report
from rldistill.reporting.model_card import escaped, model_card


def front_matter(card: str) -> Any:
    _, front, _ = re.split("^---$", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front)


def test_the_front_matter_is_what_the_hub_reads(evaluation: dict[str, Any]) -> None:
    front = front_matter(model_card(Evaluation.parse(evaluation, Path("evaluation.json")), ""))
    assert front["library_name"] == "rldistill"
    assert front["pipeline_tag"] == "reinforcement-learning"
    assert [model["name"] for model in front["model-index"]] == ["small-mlp", "wide"]
    (result,) = front["model-index"][0]["results"]
    assert result["task"]["type"] == "reinforcement-learning"
    assert result["dataset"] == {"name": "CartPole-v1", "type": "CartPole-v1"}
    # 450 400 480 470: mean 450, deviations 0 -50 30 20, variance (0 + 2,500 + 900 + 400) / 4 = 950
    assert result["metrics"][0]["value"] == "450.00 +/- 30.82"
    assert result["metrics"][1]["value"] == 0.9


def test_card_has_the_verdict_of_the_report(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    evaluation["warnings"] = {"few-seeds": "fewer than 3 training seeds"}
    write_json(tmp_path / "evaluation.json", evaluation)
    (tmp_path / "config.yaml").write_text("env: {id: CartPole-v1}\n# ```\n")
    write_report(tmp_path)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert escaped(verdict(Evaluation.parse(evaluation, Path("evaluation.json")))) in card
    assert "| small-mlp \\(student, 2 seeds\\) | 450.00 \\(400.00 to 480.00\\) |" in card
    assert "- fewer than 3 training seeds" in card
    # what a config says cannot end the block that it stands in
    assert "````yaml\nenv: {id: CartPole-v1}\n# ```\n````" in card


def test_text_of_files_is_escaped(evaluation: dict[str, Any]) -> None:
    evil = "a|b\n---\n# <script> [x](http://x) `c`"
    evaluation["env"] = evil
    evaluation["policies"][evil] = evaluation["policies"].pop("wide")
    card = model_card(Evaluation.parse(evaluation, Path("evaluation.json")), "")
    assert front_matter(card)["model-index"][1]["name"] == evil
    body = re.split("^---$", card, maxsplit=2, flags=re.MULTILINE)[2]
    assert "\n# <script>" not in body
    assert "<script>" not in body.replace("\\<script\\>", "")
    assert "](" not in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
