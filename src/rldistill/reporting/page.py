"""Report of a run: `report.html`, one file that opens offline, and `MODEL_CARD.md`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rldistill.core.errors import RLDistillError
from rldistill.evaluation.results import Evaluation, policy_rows, robustness_rows, verdict
from rldistill.io.atomic import write_atomic
from rldistill.reporting import tables
from rldistill.reporting.charts import returns_chart, templates, write_page
from rldistill.reporting.curves import efficiency_charts, learning_charts, profiles_chart
from rldistill.reporting.disagreements import gallery
from rldistill.reporting.front import run_front, search_front
from rldistill.reporting.interpret import interpretable_student
from rldistill.reporting.model_card import model_card
from rldistill.reporting.videos import embedded_videos

Part = TypeVar("Part")

MAX_BYTES = 10_000_000
RESERVED_BYTES = 20_000
SECTIONS = {
    "compared": "Results",
    "front": "Size and score",
    "returns": "Returns",
    "learning": "Learning curves",
    "fidelity": "Fidelity",
    "robustness": "Robustness",
    "episodes": "Episodes",
    "interpretable": "Interpretable students",
    "reproduce": "How to reproduce",
}


def write_report(run: Path | str) -> Path:
    """Write the report and the model card of the run in folder `run`; return the report's path.

    Raises:
        CorruptArtifactError: `evaluation.json` or a learning curve is missing or broken.
    """
    run = Path(run)
    evaluation = Evaluation.read(run / "evaluation.json")
    content = _content(run, evaluation)
    # Videos get the space that the rest of the page leaves.
    rest = templates().get_template("report.html.jinja").render(content, videos={}, left_out=0, paired=False)
    videos, left_out = embedded_videos(run / "videos", evaluation, MAX_BYTES - len(rest.encode()) - RESERVED_BYTES)
    paired = any(len(pair.videos) > 1 for pairs in videos.values() for pair in pairs)
    path = run / "report.html"
    write_page(path, "report.html.jinja", **content, videos=videos, left_out=left_out, paired=paired)
    card = model_card(evaluation, content["config"])
    write_atomic(run / "MODEL_CARD.md", lambda temporary: temporary.write_text(card, encoding="utf-8"))
    return path


def _content(run: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return the variables of the templates, without the videos."""
    missing: list[str] = []

    def unless_broken(part: Callable[[], Part]) -> Part | None:
        try:
            return part()
        except RLDistillError as error:
            missing.append(str(error))
            return None

    search = unless_broken(lambda: search_front(run))
    galleries, interpretable = [], []
    for name, entry in evaluation.students.items():
        seed = entry.runs[0].training_seed
        galleries.append(unless_broken(lambda name=name: gallery(run, name)))  # type: ignore[misc]
        interpretable.append(unless_broken(lambda name=name, seed=seed: interpretable_student(run, name, seed)))  # type: ignore[misc]
    front = run_front(evaluation)
    content = {
        "evaluation": evaluation,
        "verdict": verdict(evaluation),
        "highlights": tables.highlights(evaluation),
        "rows": [[cell for cell in row if cell.column != "IQM"] for row in policy_rows(evaluation)],
        "statistics": tables.statistics_rows(evaluation),
        "warnings": [doubt.text[:1].upper() + doubt.text[1:] for doubt in evaluation.warnings],
        "fronts": [("This run", front)] * (front is not None) + ([("The search", search[0])] if search else []),
        "search": search[1] if search else "",
        "returns": returns_chart(evaluation.policies),
        "profiles": profiles_chart(evaluation),
        "efficiency_charts": list(efficiency_charts(evaluation)),
        "efficiency_rows": tables.efficiency_rows(evaluation),
        "learning_charts": list(learning_charts(run, evaluation)),
        "fidelity": tables.fidelity_rows(evaluation),
        "regret_unit": tables.regret_unit(evaluation),
        "galleries": [part for part in galleries if part is not None],
        "robustness": robustness_rows(evaluation),
        "interpretable": [part for part in interpretable if part is not None],
        "config": _text(run / "config.yaml"),
        "provenance": _text(run / "provenance.json"),
        "missing": missing,
    }
    needs = {
        "front": content["fronts"],
        "learning": content["efficiency_charts"] or content["learning_charts"],
        "fidelity": content["fidelity"] or content["galleries"],
        "robustness": evaluation.robustness,
        "interpretable": content["interpretable"],
    }
    return content | {"sections": [(name, title) for name, title in SECTIONS.items() if needs.get(name, True)]}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
