"""Sections of the report: size and score, curves, the largest disagreements, and videos."""

import base64
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.disagreements import Gallery, StoredMoment
from rldistill.evaluation.results import Evaluation
from rldistill.evaluation.tables import number_text
from rldistill.evaluation.videos import LABELS, notable_episodes
from rldistill.exporters.certificate import FILE, Certificate
from rldistill.io.atomic import read_jsonl
from rldistill.io.untrusted import read_regular
from rldistill.reporting.charts import Line, LineStyle, Series, bulk, lines_chart, palette, scatter_chart
from rldistill.reporting.search_page import SearchResult, front_chart, search_verdict

TitledChart = tuple[str, Markup]
RowReader = Callable[[Path], list[dict[str, Any]]]
CONTROL_SUFFIX = "-scratch"
"""Suffix of the name of a student that learned from reward alone."""

METRICS = (
    ("epoch", "epochs", "heldout_loss", "Students: loss on held-out episodes"),
    ("epoch", "epochs", "agreement", "Students: agreement with the teacher on held-out episodes"),
    ("step", "environment steps", "return", "Students: return of training episodes"),
    ("step", "environment steps", "score", "Students: return of validation episodes"),
)
"""Key and title of the x axis, and key and title of the metric."""

MAX_POINTS, MAX_VALUE = 500, 1e100
"""Largest number of points of a line, and largest value in a chart, whose squares are still numbers."""

MAX_VALUES = 24
"""Largest number of values of an observation in the report."""

MAX_MEDIA_BYTES = 64 << 20
MAX_PICTURE_BYTES = 100_000
"""Largest size of a picture: twelve of them for each student must leave space for the videos."""


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points (size, score) with a higher score than all smaller ones, in order of size."""
    best, front = float("-inf"), []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best:
            best = points[name][1]
            front.append(name)
    return front


def run_front(evaluation: Evaluation) -> Markup | None:
    """Return the chart of all policies with parameters and a normalized score; None if there are fewer than two."""
    points = {
        name: (float(entry.parameters), entry.normalized.value)
        for name, entry in evaluation.policies.items()
        if entry.parameters and entry.normalized
    }
    if len(points) < 2:
        return None
    margins = [entry.non_inferiority.margin for entry in evaluation.students.values() if entry.non_inferiority]
    wanted = 1 - next(iter(margins), EvaluateConfig.margin)
    front = pareto_front(points)
    return scatter_chart(points, front, "parameters", "normalized score", wanted, palette(evaluation.policies))


def search_front(run: Path) -> tuple[Markup, str] | None:
    """Return the chart and the verdict of the search in `search/`; None without a search."""
    path = run / "search" / "search.json"
    if not path.is_file():
        return None
    found = SearchResult.read(path)
    return front_chart(found), search_verdict(found)


@dataclass(frozen=True)
class LearningCurves:
    """Learning curves under one title: the mean of the training seeds by name, and the line of each seed."""

    title: str
    x_title: str
    means: Series
    seeds: Mapping[str, Sequence[Line]] = field(default_factory=dict)

    def chart(self, colors: Mapping[str, str]) -> Markup:
        """Return the curves as a chart."""
        thin = {name: lines for name, lines in self.seeds.items() if len(lines) > 1}
        return lines_chart(self.means, self.x_title, self.title, LineStyle(colors=colors, thin=thin))


def learning_charts(run: Path, evaluation: Evaluation) -> Iterator[TitledChart]:
    """Yield the learning curves of the teacher and the students.

    Raises:
        CorruptArtifactError: a curve is broken.
    """
    colors = palette(evaluation.policies)
    for curves in learning_curves(run, [*colors]):
        yield curves.title, curves.chart(colors | {"teacher": "teacher"})


def student_folders(run: Path) -> dict[str, Path]:
    """Return the folders of the students of a run and of their controls, by name."""
    places = ((run / "controls", CONTROL_SUFFIX), (run / "students", ""))
    return {f"{own.name}{suffix}": own for folder, suffix in places for own in folder.glob("*") if own.is_dir()}


def learning_curves(run: Path, names: Sequence[str], read: RowReader = read_jsonl) -> Iterator[LearningCurves]:
    """Yield the learning curves of the teacher, and of the students with these names."""
    rows = read(run / "teacher" / "curve.jsonl")
    if curve := _finite((row.get("step", 0), row.get("mean")) for row in rows):
        title = "Teacher: mean return during training"
        yield LearningCurves(title, "environment steps", {"teacher": curve})
    folders = student_folders(run)
    for x, x_title, key, title in METRICS:
        seeds = {name: learning_lines(folders[name], x, key, read) for name in names if name in folders}
        means: Series = {}
        for name, lines in seeds.items():
            values: dict[float, list[float]] = {}
            for step, value in itertools.chain(*lines):
                values.setdefault(step, []).append(value)
            if values:
                means[name] = thinned([(step, sum(values[step]) / len(values[step])) for step in sorted(values)])
        if means:
            yield LearningCurves(title, x_title, means, {name: [*map(thinned, own)] for name, own in seeds.items()})


def learning_lines(student: Path, x: str, key: str, read: RowReader = read_jsonl) -> list[Line]:
    """Return a line of a metric for each training seed, by `epoch` or `step`; rounds of DAgger follow one another."""
    lines = []
    for seed in sorted(student.glob("seed-*")):
        rounds = sorted(seed.glob("round-*"), key=lambda folder: (len(folder.name), folder.name))  # 10 after 9
        rows = [row for folder in (*rounds, seed) for row in read(folder / "metrics.jsonl")]
        # Students that learn from reward have no epochs.
        rows = [row for row in rows if ("epoch" in row) == (x == "epoch")]
        if line := _finite((k if x == "epoch" else row.get("step", 0), row.get(key)) for k, row in enumerate(rows, 1)):
            lines.append(line)
    return lines


def thinned(line: Line) -> Line:
    """Return every second, third, ... point of a line with more points than a chart can show, and its last one."""
    stride = math.ceil(len(line) / MAX_POINTS)
    return line if stride < 2 else [*line[:-1:stride], line[-1]]


def _finite(points: Iterable[tuple[float, float | None]]) -> Line:
    return [(x, y) for x, y in points if isinstance(y, int | float) and max(abs(x), abs(y)) < MAX_VALUE]


def efficiency_charts(evaluation: Evaluation) -> Iterator[TitledChart]:
    """Yield the normalized score against environment steps, the teacher's data included."""
    curves: Series = {name: found.curve for name, found in evaluation.efficiency.items() if found.curve}
    # If all curves are points at the same step, the table shows the same better.
    if len({x for curve in curves.values() for x, _ in curve}) > 1:
        title = "Normalized score against environment steps"
        yield title, lines_chart(curves, "environment steps", title, LineStyle(colors=palette(evaluation.policies)))


def profiles_chart(evaluation: Evaluation) -> Markup | None:
    """Return the share of episodes above each return; None if all returns are equal."""
    at = evaluation.profile_at
    if at[0] == at[-1]:
        return None
    profiles = {name: entry.profile for name, entry in evaluation.policies.items()}
    style = LineStyle(
        colors=palette(evaluation.policies),
        bands={name: list(zip(at, own.low, own.high, strict=True)) for name, own in profiles.items()},
        x_range=bulk([value for entry in evaluation.policies.values() for value in entry.returns]),
    )
    lines: Series = {name: list(zip(at, own.share, strict=True)) for name, own in profiles.items()}
    return lines_chart(lines, "return", "share of episodes with a higher return", style)


def unit_text(unit: str | None) -> str:
    """Return a unit of regret as text."""
    return "units of the return" if unit == "return" else unit or ""


def gallery(run: Path, policy: str) -> dict[str, Any] | None:
    """Return the moments of a student, in groups of similar ones; None without any."""
    folder = run / "disagreements" / policy
    path = folder / "disagreements.json"
    if not path.is_file():
        return None
    found = Gallery.read(path)
    groups = [[_moment(moment, found.names, folder) for moment in group] for group in found.groups]
    return {"policy": policy, "unit": unit_text(found.unit), "groups": groups} if groups else None


def _moment(moment: StoredMoment, names: list[str], folder: Path) -> dict[str, Any]:
    """Return the texts of a moment, with its picture, or its first values by name and the number of further ones."""
    values = moment.obs or []
    frame = folder / Path(moment.frame).name if moment.frame else None
    fits = frame is not None and frame.is_file() and frame.stat().st_size <= MAX_PICTURE_BYTES
    seed = "" if moment.training_seed is None else f"training seed {moment.training_seed}, "
    return {
        "title": f"{seed}episode {moment.episode}, step {moment.step}",
        "regret": f"{moment.regret:.3g}",
        "student": action_text(moment.student_action),
        "teacher": action_text(moment.teacher_action),
        "picture": data_url(frame, "image/png") if frame is not None and fits else "",
        "numbers": [(name, f"{value:.3g}") for name, value in zip(names, values[:MAX_VALUES], strict=False)],
        "more": max(0, len(values) - MAX_VALUES),
    }


def action_text(action: Any) -> str:
    """Return an action, a number or a list of numbers, as text."""
    return f"({', '.join(map(action_text, action))})" if isinstance(action, list) else f"{action:.3g}"


def data_url(path: Path, kind: str) -> str:
    """Return a file as a URL that contains it."""
    return f"data:{kind};base64,{base64.b64encode(read_regular(path, MAX_MEDIA_BYTES)).decode()}"


def embedded_videos(folder: Path, evaluation: Evaluation, space: int) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Return the videos by policy that fit into `space` characters, and the number of those that do not.

    A student's video is beside its teacher's of the episode with the same seed. The best episodes of all students have
    priority, then the worst, then the median ones, then other policies.
    """
    students = list(evaluation.students)
    others = [name for name in evaluation.policies if name not in students]
    chosen: dict[tuple[str, str], dict[str, Any]] = {}
    left_out = 0
    for names, label in itertools.product((students, others), ("best", "worst", "median")):
        for name in names:
            files = {name: folder / f"{name}-{label}.mp4"}
            if not files[name].is_file():
                continue
            if (beside := folder / f"{name}-{label}-teacher.mp4").is_file():
                files["teacher"] = beside
            # Only the first training seed is recorded.
            returns = {policy: evaluation.policies[policy].runs[0].returns for policy in files}
            number = notable_episodes(returns[name])[label]
            videos = [
                {"policy": policy, "result": number_text(returns[policy][number]), "url": data_url(path, "video/mp4")}
                for policy, path in files.items()
            ]
            size = sum(len(video["url"]) for video in videos)
            if size > space:
                left_out += len(videos)
                continue
            space -= size
            chosen[name, label] = {"label": label, "episode": number, "videos": videos}
    names = [*students, *others]
    pairs = {name: [chosen[name, label] for label in LABELS if (name, label) in chosen] for name in names}
    return {name: own for name, own in pairs.items() if own}, left_out


def first_video(
    videos: dict[str, list[dict[str, Any]]], evaluation: Evaluation
) -> tuple[dict[str, Any] | None, dict[str, list[dict[str, Any]]]]:
    """Return the median episode of the best student, or another one of it, for the first screen; and all others."""
    best = evaluation.best_student
    own = videos.get(best[0], []) if best is not None else []
    if best is None or not own:
        return None, videos
    first = next((pair for pair in own if pair["label"] == "median"), own[0])
    rest = {name: [pair for pair in pairs if pair is not first] for name, pairs in videos.items()}
    return first, {name: pairs for name, pairs in rest.items() if pairs}


def certificate(run: Path, student: str) -> Certificate | None:
    """Return the certificate of a student's exported files; None without any."""
    folder = run / "export" / student
    return Certificate.read(folder) if (folder / FILE).exists() else None
