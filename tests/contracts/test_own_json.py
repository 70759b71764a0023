"""JSON of this package with a hash that fits and a wrong content is refused in one line, with its path and field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rldistill.core.errors import CorruptArtifactError
from rldistill.distillation.weighting import TeacherShares
from rldistill.evaluation.disagreements import Gallery
from rldistill.io.atomic import Document, write_json
from rldistill.recipes.dagger import _Score
from rldistill.reporting.search_page import FinalistTest, SearchResult
from rldistill.search.halving import _Returns, _TrialResult

SCORE = {"value": 0.97, "ci95": [0.9, 1.0]}
RUNG = {"epochs": 1, "episodes": 4, "normalized": SCORE, "failed": None}
TEST = {"seeds": [0, 1], "folder": "x", "episodes": 4, "normalized": None, "failed": "why", "test": None}
TRIAL = {"name": "tiny", "student": {"type": "linear"}, "size": {"bytes": 9}, "rungs": [RUNG], "test": TEST}
REGION = {"rule": "obs[0] > 1", "states": 0.5, "shares": {"a": 1.0}}
SHARE = {"share": 0.5, "over_time": [0.5], "episodes": 3, "mean_return": None}
MOMENT = {
    "training_seed": None, "episode": 1, "step": 2, "regret": 0.5, "student_action": 1, "teacher_action": [1, 0.5],
    "student": [0.5], "teacher": [0.25], "frame": "1-1.png", "obs": None,
}  # fmt: skip
DOCUMENTS: list[tuple[type[Document], dict[str, Any]]] = [
    (SearchResult, {
        "env": "CartPole-v1", "margin": 0.05, "by": "bytes", "baseline": None, "env_steps": 9,
        "teacher": {"bytes": 99}, "winner": "tiny", "tried": [TRIAL], "front": ["tiny"], "seconds": 1.0,
    }),
    (Gallery, {"unit": None, "names": ["obs[0]"], "groups": [[MOMENT]]}),
    (FinalistTest, TEST),
    (_TrialResult, {"size": {"bytes": None}, "row": RUNG}),
    (_Returns, {"returns": [1.0, 2]}),
    (_Score, {"episodes": 3, "score": 5}),
    (TeacherShares, {"weighting": "value", "teachers": {"a": SHARE}, "regions": [REGION]}),
]  # fmt: skip
VALUES: list[Any] = ["text", {"a": 1}, [["x"]], [], True, -1e308, 10**400, "x\ud800"]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values within JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in places(item, (*path, key)))]


def changed(document: dict[str, Any], place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    copied = copy.deepcopy(document)
    parent: Any = copied
    for key in place[:-1]:
        parent = parent[key]
    change(parent, place[-1])
    return copied


@pytest.mark.parametrize(("form", "document"), DOCUMENTS, ids=[form.__name__ for form, _ in DOCUMENTS])
def test_wrong_content_is_refused_in_one_line(tmp_path: Path, form: type[Document], document: dict[str, Any]) -> None:
    path = tmp_path / "file.json"
    write_json(path, document)
    assert form.read(path).model_dump(mode="json", exclude_unset=True) == document
    errors = list[str]()
    for place in places(document)[1:]:
        variants = [changed(document, place, lambda parent, key: parent.pop(key))]
        for value in VALUES:
            variants.append(changed(document, place, lambda parent, key, value=value: parent.__setitem__(key, value)))  # type: ignore[misc]
        for variant in variants:
            try:
                write_json(path, variant)
            except Exception:  # no text at all: nothing could write it with a hash
                path.write_text(json.dumps(variant))
            try:
                form.read(path)
            except CorruptArtifactError as error:
                errors.append(str(error))
    assert len(errors) > 4 * len(places(document)) - 4
    assert all(error.startswith(f"{path}: ") and error.isprintable() for error in errors)
    write_json(path, document | {"more": 1})
    with pytest.raises(CorruptArtifactError, match="more: is an unknown field"):
        form.read(path)


@pytest.mark.parametrize(
    "change",
    [{"winner": "other"}, {"by": "macs"}, {"tried": [TRIAL | {"test": None}]}, {"tried": [TRIAL | {"rungs": []}]}],
)
def test_winner_has_a_test_and_a_size(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "search.json"
    write_json(path, DOCUMENTS[0][1] | change)
    with pytest.raises(CorruptArtifactError, match=r"search\.json: .*Run `rldistill search` again"):
        SearchResult.read(path)
