"""Page and table of a search for the smallest student."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import yaml
from annotated_types import MinLen
from markupsafe import Markup
from pydantic import NonNegativeInt, PositiveInt, model_validator

from rldistill.evaluation.non_inferiority import Decision, NonInferiorityResult, least_episodes
from rldistill.evaluation.results import reference_noun
from rldistill.evaluation.statistics import Estimate
from rldistill.evaluation.tables import NONE, Record, Rows, TableCell, figure, percent_text
from rldistill.reporting.charts import scatter_chart, write_page

ADVICE = "Run `rldistill search` again with --overwrite."


class Rung(Record):
    """Score of a student in one rung of the search."""

    epochs: PositiveInt
    episodes: PositiveInt
    normalized: Estimate | None
    failed: str | None


class FinalistTest(Record):
    """Test of a finalist, which has none if it learned nothing.

    `folder` has its students, and is relative to that of the search.
    """

    advice: ClassVar[str] = ADVICE
    seeds: Annotated[list[int], MinLen(1)]
    folder: str
    episodes: NonNegativeInt
    normalized: Estimate | None
    failed: str | None
    test: NonInferiorityResult | None

    @property
    def decision(self) -> Decision:
        """Answer of the test."""
        return "no" if self.test is None else self.test.decision


class Trial(Record):
    """Student of a search, with its sizes and its results."""

    name: str
    student: str | dict[str, Any]
    size: dict[str, float | None]
    rungs: Annotated[list[Rung], MinLen(1)]
    test: FinalistTest | None


class SearchResult(Record):
    """Content of `search.json`."""

    advice: ClassVar[str] = ADVICE
    env: str
    margin: float
    by: str
    baseline: str | None = None
    env_steps: int
    teacher: dict[str, float | None]
    winner: str | None
    tried: list[Trial]
    front: list[str]
    seconds: float

    @model_validator(mode="after")
    def _require_winner(self) -> Self:
        if self.by not in self.teacher:
            raise ValueError(f"teacher: {self.by} is missing")
        if self.winner is not None:
            trials = [trial for trial in self.tried if trial.name == self.winner]
            if len(trials) != 1 or trials[0].test is None or self.by not in trials[0].size:
                raise ValueError("winner: found no tested student of that name")
        return self

    @property
    def winning(self) -> Trial | None:
        """Trial of the winner; None without one."""
        return next((trial for trial in self.tried if trial.name == self.winner), None)


def search_verdict(found: SearchResult) -> str:
    """Return the result of a search in one sentence."""
    lead, by = (
        f"{percent_text(1 - found.margin)} of the teacher's lead over {reference_noun(found.baseline)}",
        found.by,
    )
    trial = found.winning
    if trial is None or trial.test is None:
        tested = [own.test.episodes for own in found.tried if own.test is not None]
        least = least_episodes(found.margin)
        if tested and max(tested) < least:
            return (
                f"No student is known to keep {lead}: {max(tested)} episodes are too few, at least {least} are needed."
            )
        return f"No student is known to keep {lead}. Collect more steps, or try larger students."
    size, teacher_size = trial.size[by], found.teacher[by] or 0
    share = f", a {teacher_size / size:,.0f}th of the teacher's" if size and teacher_size >= 2 * size else ""
    episodes = f"{trial.test.episodes} episodes, {len(trial.test.seeds)} training seeds"
    return f"The smallest student that keeps {lead} is {trial.name}: {size:,.0f} {by}{share} ({episodes})."


def as_students(found: SearchResult) -> str:
    """Return the winner as part of a run file; empty without one."""
    if (trial := found.winning) is None:
        return ""
    students = {"students": {trial.name: trial.student}}
    return yaml.safe_dump(students, default_flow_style=None, sort_keys=False).strip()


def search_rows(found: SearchResult) -> Rows:
    """Return a list of cells for each student, in order of size."""
    rows, sizes = [], {trial.name: trial.size.get(found.by) for trial in found.tried}
    for trial in sorted(found.tried, key=lambda trial: (sizes[trial.name] is None, sizes[trial.name] or 0)):
        last, test = trial.rungs[-1], trial.test
        result = test or last
        rows.append(
            [
                TableCell("student", trial.name),
                figure(found.by, sizes[trial.name], ",.0f"),
                figure("normalized", result.normalized, ".3f"),
                TableCell("front", "yes" if trial.name in found.front else ""),
                TableCell("episodes", f"{result.episodes}"),
                TableCell("keeps it", test.decision if test else "failed" if last.failed else NONE),
            ]
        )
    return rows


def front_chart(found: SearchResult) -> Markup:
    """Return the chart of size and score of all students."""
    points = {}
    for trial in found.tried:
        size, score = trial.size.get(found.by), (trial.test or trial.rungs[-1]).normalized
        if size and score is not None:
            points[trial.name] = (size, score.value)
    front = [name for name in found.front if name in points]
    return scatter_chart(points, front, found.by, "normalized score", 1 - found.margin)


def write_search(found: SearchResult, path: Path) -> None:
    """Write the result of a search as one HTML file that opens offline."""
    values = {"verdict": search_verdict(found), "rows": search_rows(found), "chart": front_chart(found)}
    write_page(path, "search.html.jinja", found=found, students=as_students(found), **values)
