"""Pages: report and model card of a run, comparisons of runs and of teachers; each is one file that opens offline."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rldistill.core.errors import RLDistillError
from rldistill.evaluation.compare_teachers import TeacherComparison
from rldistill.evaluation.results import (
    Evaluation,
    agreement_rows,
    next_step,
    policy_rows,
    robustness_rows,
    team_rows,
    verdict,
)
from rldistill.evaluation.tasks import TasksEvaluation
from rldistill.evaluation.worlds import world_rows
from rldistill.io.atomic import write_text
from rldistill.io.untrusted import read_own, require_confined
from rldistill.reporting import sections, tables
from rldistill.reporting.charts import colors_of, palette, returns_chart, templates, write_page
from rldistill.reporting.compare_runs import RunComparison
from rldistill.reporting.interpret import interpretable_student
from rldistill.reporting.model_card import model_card
from rldistill.reporting.tables import condensed_states, region_rows, share_charts, share_rows, teacher_shares

Part = TypeVar("Part")

MAX_BYTES = 10_000_000
RESERVED_BYTES = 20_000
SECTIONS = {
    "compared": "Results",
    "front": "Size and score",
    "teachers": "Teachers",
    "condensed": "Condensed data",
    "returns": "Returns",
    "learning": "Learning curves",
    "fidelity": "Fidelity",
    "worlds": "Other worlds",
    "robustness": "Robustness",
    "teams": "Teams",
    "episodes": "Episodes",
    "interpretable": "Interpretable students",
    "exports": "Exported files",
    "reproduce": "How to reproduce",
}


def write_report(run: Path | str) -> Path:
    """Write the report and the model card of the run in folder `run`; return the report's path.

    Raises:
        CorruptArtifactError: `evaluation.json` or a learning curve is missing or broken.
        UntrustedFileError: The folder has links that lead out of it.
    """
    run = Path(run)
    if run.is_dir():
        require_confined(run, ("dataset",))  # all that it holds may be published; no dataset is
    evaluation = Evaluation.read(run / "evaluation.json")
    content = _content(run, evaluation)
    # Videos get the space that the rest of the page leaves.
    rest = (
        templates().get_template("report.html.jinja").render(content, videos={}, left_out=0, paired=False, playing=None)
    )
    videos, left_out = sections.embedded_videos(
        run / "videos", evaluation, MAX_BYTES - len(rest.encode()) - RESERVED_BYTES
    )
    paired = any(len(pair["videos"]) > 1 for pairs in videos.values() for pair in pairs)
    playing, videos = sections.first_video(videos, evaluation)
    path = run / "report.html"
    write_page(path, "report.html.jinja", **content, videos=videos, left_out=left_out, paired=paired, playing=playing)
    card = model_card(evaluation, content["config"], dict(content["exports"]))
    write_text(run / "MODEL_CARD.md", card)
    return path


def write_tasks_report(run: Path | str) -> Path:
    """Write the report of a run of several tasks, with a table of each; return its path.

    Raises:
        CorruptArtifactError: An `evaluation.json` is missing or broken.
    """
    run = Path(run)
    evaluation = TasksEvaluation.read(run / "evaluation.json")
    own = {task: Evaluation.read(run / "tasks" / task / "evaluation.json") for task in evaluation.tasks}
    tables_by_task = {
        task: (policy_rows(results), tables.statistics_rows(results), verdict(results)) for task, results in own.items()
    }
    path = run / "report.html"
    write_page(path, "tasks.html.jinja", evaluation=evaluation, rows=evaluation.rows, tasks=tables_by_task)
    return path


def write_comparison(comparison: TeacherComparison, path: Path) -> None:
    """Write a comparison of teachers as a page."""
    returns = {name: (score.returns, score.mean) for name, score in comparison.teachers.items()}
    chart = returns_chart(returns, colors_of(returns))
    write_page(path, "teachers.html.jinja", comparison=comparison, rows=comparison.rows, returns=chart)


def write_run_comparison(comparison: RunComparison, path: Path) -> None:
    """Write a comparison of runs as a page."""
    names = [Path(run).name for run in comparison.runs]
    returns = {
        f"{name} {Path(run).name if len({*names}) == len(names) else run}": (entry.returns, entry.mean)
        for run, evaluation in comparison.runs.items()
        for name, entry in evaluation.students.items()
    }
    teacher = next(iter(comparison.runs.values())).teacher
    colors = colors_of(returns) | {"teacher": "teacher"}
    chart = returns_chart({"teacher": (teacher.returns, teacher.mean), **returns}, colors, "teacher")
    write_page(path, "compare.html.jinja", comparison=comparison, returns=chart)


def _content(run: Path, evaluation: Evaluation) -> dict[str, Any]:
    """Return the variables of the templates, without the videos."""
    missing: list[str] = []

    def unless_broken(part: Callable[..., Part], *arguments: Any) -> Part | None:
        try:
            return part(*arguments)
        except RLDistillError as error:
            missing.append(str(error))
            return None

    search, students = unless_broken(sections.search_front, run), evaluation.students
    galleries = [unless_broken(sections.gallery, run, name) for name in students]
    seeds = {name: entry.runs[0].training_seed for name, entry in students.items()}
    interpretable = [unless_broken(interpretable_student, run, name, seed) for name, seed in seeds.items()]
    returns = {name: (entry.returns, entry.mean) for name, entry in evaluation.policies.items()}
    units = [entry.fidelity.regret_unit for entry in students.values() if entry.fidelity]
    front = sections.run_front(evaluation)
    shares = unless_broken(teacher_shares, run, list(students)) or {}
    content = {
        "evaluation": evaluation,
        "verdict": verdict(evaluation),
        "next_step": next_step(evaluation, run),
        "highlights": tables.highlights(evaluation),
        "rows": [[cell for cell in row if cell.column != "IQM"] for row in policy_rows(evaluation)],
        "statistics": tables.statistics_rows(evaluation),
        "warnings": [text[:1].upper() + text[1:] for text in evaluation.warnings.values()],
        "fronts": [("This run", front)] * (front is not None) + ([("The search", search[0])] if search else []),
        "search": search[1] if search else "",
        "returns": returns_chart(returns, palette(evaluation.policies), "teacher"),
        "profiles": sections.profiles_chart(evaluation),
        "efficiency_charts": list(sections.efficiency_charts(evaluation)),
        "efficiency_rows": tables.efficiency_rows(evaluation),
        "learning_charts": list(sections.learning_charts(run, evaluation)),
        "teacher_rows": share_rows(shares),
        "teacher_charts": share_charts(shares),
        "regions": region_rows(shares),
        "condensed": unless_broken(condensed_states, run),
        "fidelity": tables.fidelity_rows(evaluation),
        "regret_unit": sections.unit_text(next(filter(None, units), None)),
        "galleries": list(filter(None, galleries)),
        "worlds": world_rows(evaluation.worlds),
        "robustness": robustness_rows(evaluation),
        "teams": team_rows(evaluation),
        "agreement": agreement_rows(evaluation),
        "interpretable": list(filter(None, interpretable)),
        "exports": [(name, found) for name in students if (found := unless_broken(sections.certificate, run, name))],
        "config": _text(run / "config.yaml"),
        "provenance": _text(run / "provenance.json"),
        "missing": missing,
    }
    needs = {
        "front": content["fronts"],
        "teachers": shares,
        "learning": content["efficiency_charts"] or content["learning_charts"],
        "fidelity": content["fidelity"] or content["galleries"],
        **{name: getattr(evaluation, name) for name in ("worlds", "robustness", "teams")},
        **{name: content[name] for name in ("condensed", "interpretable", "exports")},
    }
    return content | {"sections": [(name, title) for name, title in SECTIONS.items() if needs.get(name, True)]}


def _text(path: Path) -> str:
    return read_own(path).decode(errors="replace") if path.exists() else ""
