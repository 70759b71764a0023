"""`report.html`: one file that opens offline, from what the stages left in a run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rldistill.core.errors import CorruptArtifactError, RLDistillError
from rldistill.io.atomic import read_json, write_atomic
from rldistill.reporting import sections as details
from rldistill.reporting.charts import returns_chart, templates
from rldistill.reporting.curves import efficiency_charts, learning_charts, profiles_chart
from rldistill.reporting.front import run_front, search_front
from rldistill.reporting.gallery import gallery
from rldistill.reporting.model_card import model_card
from rldistill.reporting.readable import readable
from rldistill.reporting.tables import highlights, rows, verdict
from rldistill.reporting.videos import films

Part = TypeVar("Part")

MOST_BYTES = 10_000_000
EVALUATION_KEYS = ("env", "env_kwargs", "episodes", "seeds", "versions", "policies")
POLICY_KEYS = (
    *("kind", "runs", "distinct_episodes", "mean", "iqm", "ci95", "normalised", "normalised_ci95", "discounted_mean"),
    *("agreement", "action_rmse", "parameters", "bytes", "macs", "latency_us", "env_steps"),
)
SECTIONS = {
    "compared": "What was compared",
    "front": "Size and score",
    "returns": "Returns",
    "learning": "Learning curves",
    "fidelity": "Fidelity",
    "robustness": "Robustness",
    "episodes": "Episodes",
    "readable": "Students that can be read",
    "again": "Do it again",
}


def write_report(run: Path) -> Path:
    """Write the report of the run in folder `run`, and `MODEL_CARD.md` beside it; returns the report's path.

    What a run has not got, such as films or a search, is left out.

    Raises:
        CorruptArtifactError: `evaluation.json` is missing, or it or a learning curve is broken.
    """
    evaluation = read_evaluation(run / "evaluation.json")
    given = _given(run, evaluation)
    template = templates().get_template("report.html.jinja")
    # What else there is goes first, and films have what is left of the room.
    room = MOST_BYTES - len(template.render(given, films={}, left_out=0, beside=False).encode()) - 20_000
    shown, left_out = films(run / "videos", evaluation, room)
    beside = any(len(pair.films) > 1 for pairs in shown.values() for pair in pairs)
    page = template.render(given, films=shown, left_out=left_out, beside=beside)
    path = run / "report.html"
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    card = model_card(evaluation, given["config"])
    write_atomic(run / "MODEL_CARD.md", lambda temporary: temporary.write_text(card, encoding="utf-8"))
    return path


def _given(run: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """What the templates are given, but for the films."""
    unshown: list[str] = []

    def unless_broken(part: Callable[[], Part]) -> Part | None:
        try:
            return part()
        except RLDistillError as error:
            unshown.append(str(error))
            return None

    students = {name: entry for name, entry in evaluation["policies"].items() if entry["kind"] == "student"}
    firsts = {name: entry["runs"][0].get("training_seed") for name, entry in students.items()}
    search = unless_broken(lambda: search_front(run))
    galleries = [unless_broken(lambda name=name: gallery(run, name)) for name in students]  # type: ignore[misc]
    words = [unless_broken(lambda name=name: readable(run, name, firsts[name])) for name in students]  # type: ignore[misc]
    front, statistics = run_front(evaluation), details.statistics_rows(evaluation)
    given = {
        "evaluation": evaluation,
        "verdict": verdict(evaluation),
        "highlights": highlights(evaluation),
        # The means of the middle half stand among the other statistics, where there are any.
        "rows": [[cell for cell in row if not statistics or cell.column != "IQM"] for row in rows(evaluation)],
        "statistics": statistics,
        "doubts": [doubt["text"][:1].upper() + doubt["text"][1:] for doubt in evaluation.get("warnings", [])],
        "fronts": [
            *([("This run", front)] if front is not None else []),
            *([("The search", search[0])] if search is not None else []),
        ],
        "search": search[1] if search is not None else "",
        "returns": returns_chart(evaluation),
        "profiles": profiles_chart(evaluation),
        "efficiency_charts": list(efficiency_charts(evaluation)),
        "efficiency_rows": details.efficiency_rows(evaluation),
        "learning_charts": list(learning_charts(run, evaluation)),
        "fidelity": details.fidelity_rows(evaluation),
        "regret_unit": details.regret_unit(evaluation),
        "galleries": [found for found in galleries if found is not None],
        "robustness": details.robustness_rows(evaluation),
        "readable": [found for found in words if found is not None],
        "config": _text(run / "config.yaml"),
        "provenance": _text(run / "provenance.json"),
        "unshown": unshown,
    }
    return given | {"sections": [(name, title) for name, title in SECTIONS.items() if _has(name, given)]}


def _has(section: str, given: dict[str, Any]) -> bool:
    needs = {
        "front": given["fronts"],
        "learning": given["efficiency_charts"] or given["learning_charts"],
        "fidelity": given["fidelity"] or given["galleries"],
        "robustness": given["evaluation"].get("robustness"),
        "readable": given["readable"],
    }
    return bool(needs.get(section, True))


def read_evaluation(path: Path) -> dict[str, Any]:
    """An `evaluation.json`, whole; raises CorruptArtifactError for one that is missing or lacks something."""
    if not path.exists():
        raise CorruptArtifactError(f"{path}: there is nothing to report yet; run `rldistill evaluate` first")
    evaluation = read_json(path)
    _require(path, "it", evaluation, EVALUATION_KEYS)
    _require(path, "policies", evaluation["policies"], ())
    for name, entry in evaluation["policies"].items():
        _require(path, f"policies.{name}", entry, POLICY_KEYS)
    if "teacher" not in [entry["kind"] for entry in evaluation["policies"].values()]:
        raise CorruptArtifactError(f"{path}: no policy in it is a teacher; run `rldistill evaluate` again")
    return dict(evaluation)


def _require(path: Path, where: str, value: object, keys: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise CorruptArtifactError(f"{path}: {where} should be an object; run `rldistill evaluate` again")
    missing = [key for key in keys if key not in value]
    if missing:
        raise CorruptArtifactError(f"{path}: {where} lacks {', '.join(missing)}; run `rldistill evaluate` again")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
