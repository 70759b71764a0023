"""Charts as inline SVG, drawn by `charts.html.jinja` and colored by the style sheet of the page.

Horizontal positions are percentages and heights are pixels, so that a chart fills a phone or a desktop window, and its
text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rldistill.evaluation.records import PolicyResult
from rldistill.evaluation.tables import number_text
from rldistill.io.atomic import write_atomic

Line = list[tuple[float, float]]
Series = dict[str, Line]

ROW_HEIGHT, PLOT_HEIGHT = 68, 220
MAX_DOTS = 600
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
NUM_COLORS = 6


@dataclass(frozen=True)
class Scale:
    """Axis that maps values to 0..1."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def covering(cls, values: Sequence[float], padding: float = 0.04, log: bool = False) -> Scale:
        """Return the scale of all values, with padding at both ends."""
        ends = [math.log10(end) if log else end for end in (min(values), max(values))]
        margin = (ends[1] - ends[0]) * padding if ends[1] > ends[0] else max(1.0, abs(ends[0]) * 0.1)
        return cls(ends[0] - margin, ends[1] + margin, log)

    def __call__(self, value: float) -> float:
        """Return the position of a value on the axis, from 0 to 1."""
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the positions and texts of a few round numbers."""
        values = _decades(self.low, self.high) if self.log else _round_numbers(self.low, self.high)
        return [(self(value), _tick_text(value)) for value in values]


def palette(policies: Mapping[str, PolicyResult]) -> dict[str, str]:
    """Return the CSS class of each policy: gray for teacher and random play, a color for each student."""
    students = [name for name, entry in policies.items() if entry.kind == "student"]
    return {
        name: f"c{students.index(name) % NUM_COLORS}" if name in students else entry.kind
        for name, entry in policies.items()
    }


@dataclass(frozen=True)
class ReturnsRow:
    """Returns of one policy in a chart."""

    returns: Sequence[float]
    mean: float
    ci95: tuple[float, float]
    color: str
    reference: bool = False


def returns_chart(policies: Mapping[str, PolicyResult]) -> Markup:
    """Return a chart of all policies' returns, with the teacher's mean as a dashed line."""
    colors = palette(policies)
    return rows_chart(
        {
            name: ReturnsRow(entry.returns, entry.mean, entry.ci95, colors[name], entry.kind == "teacher")
            for name, entry in policies.items()
        }
    )


def rows_chart(rows: Mapping[str, ReturnsRow]) -> Markup:
    """Return a chart with a dot for each return, the mean and its 95% interval, and the mean of reference rows.

    Outliers lie at the edge; of more than MAX_DOTS returns, every second, third, ... is drawn.
    """
    everything = [value for row in rows.values() for value in row.returns]
    low, high = bulk(everything)
    scale = Scale.covering([low, high])

    def position(value: float) -> float:
        return scale(min(max(value, low), high))

    drawn = [
        {
            "name": shortened(name),
            "color": row.color,
            "top": ROW_HEIGHT * number,
            "mean": row.mean,
            "ci95": row.ci95,
            "mark": position(row.mean),
            "ends": [position(end) for end in row.ci95],
            # Multiples of the golden ratio spread evenly, so that dots of equal returns do not cover each other.
            "dots": [
                (position(x), 2 * (k * GOLDEN_RATIO % 1) - 1, x)
                for k, x in enumerate(row.returns[:: math.ceil(len(row.returns) / MAX_DOTS)])
            ],
            "opacity": max(0.14, min(0.55, 4 / math.sqrt(len(row.returns)))),
        }
        for number, (name, row) in enumerate(rows.items())
    ]
    return _draw(
        "returns",
        rows=drawn,
        scale=scale,
        references=[position(row.mean) for row in rows.values() if row.reference],
        height=ROW_HEIGHT * len(drawn),
        number=number_text,
        outliers=sum(not low <= x <= high for x in everything),
        thinned=any(len(row.returns) > MAX_DOTS for row in rows.values()),
    )


def bulk(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value, or narrower ends if a few outliers would leave no space for the rest."""
    ordered = sorted(values)
    low, high = (ordered[round(part * (len(ordered) - 1))] for part in (0.05, 0.95))
    span = high - low
    if span <= 0:
        return ordered[0], ordered[-1]
    return (
        ordered[0] if ordered[0] >= low - span else low - span / 4,
        ordered[-1] if ordered[-1] <= high + span else high + span / 4,
    )


@dataclass(frozen=True)
class LineStyle:
    """Options of a line chart.

    Attributes:
        colors: CSS class of each name.
        thin: further lines of a name (its training seeds).
        bands: (x, low, high) around a name's line.
        x_range: ends of the x axis, if not those of the points.
    """

    colors: Mapping[str, str] = field(default_factory=dict)
    thin: Mapping[str, Sequence[Line]] = field(default_factory=dict)
    bands: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)
    x_range: tuple[float, float] | None = None


def lines_chart(series: Series, x_title: str, y_title: str, style: LineStyle = LineStyle()) -> Markup:
    """Return a chart with a line for each name; the y axis is logarithmic if its values span decades."""
    points = [point for lines in (series.values(), *style.thin.values()) for line in lines for point in line]
    ys = [y for _, y in points] + [y for band in style.bands.values() for _, *ends in band for y in ends]
    log = min(ys) > 0 and max(ys) / min(ys) > 50
    x, y = Scale.covering(style.x_range or [x for x, _ in points], padding=0), Scale.covering(ys, log=log)

    def path(line: Line) -> str:
        return " ".join(f"{100 * x(a):.2f},{PLOT_HEIGHT * (1 - y(b)):.1f}" for a, b in line)

    def outline(band: Sequence[tuple[float, float, float]]) -> str:
        return path([(a, low) for a, low, _ in band] + [(a, high) for a, _, high in reversed(band)])

    drawn = [
        {
            "name": name,
            "color": style.colors.get(name, f"c{number % NUM_COLORS}"),
            "line": path(line),
            "band": outline(style.bands[name]) if name in style.bands else "",
            "thin": [path(seed) for seed in style.thin.get(name, ())],
            "end": None if style.x_range else (x(line[-1][0]), y(line[-1][1])),
        }
        for number, (name, line) in enumerate(series.items())
    ]
    title = f"{y_title} against {x_title}" + (", logarithmic" if log else "")
    return _draw("lines", drawn=drawn, x=x, y=y, x_title=x_title, title=title, height=PLOT_HEIGHT)


def scatter_chart(
    points: Mapping[str, tuple[float, float]],
    front: Sequence[str],
    x_title: str,
    y_title: str,
    wanted: float,
    colors: Mapping[str, str] | None = None,
) -> Markup:
    """Return a chart with a dot for each name, a line through `front` in this order, and `wanted` as a dashed line.

    The x axis is logarithmic; dots far below the others lie at the bottom. With `colors`, the CSS class of each name,
    all names are in a legend; without, the names of `front` are in the picture.
    """
    floor = min(0.0, wanted)
    shown = {name: (a, max(b, floor)) for name, (a, b) in points.items()}
    x = Scale.covering([a for a, _ in shown.values()] or [1.0], padding=0.06, log=True)
    y = Scale.covering([wanted, *(b for _, b in shown.values())])
    dots = [
        {
            "name": name if colors else shortened(name),
            "color": "c0" if colors is None else colors[name],
            "x": x(a),
            "y": 1 - y(b),
            "on_front": name in front,
            "text": f"{name}: {a:,.0f} {x_title}, {points[name][1]:.3f}",
        }
        for name, (a, b) in shown.items()
    ]
    line = " ".join(f"{100 * x(a):.2f},{PLOT_HEIGHT * (1 - y(b)):.1f}" for a, b in (shown[name] for name in front))
    title = f"{y_title} against {x_title}, logarithmic"
    axes = {"x": x, "y": y, "x_title": x_title, "title": title, "height": PLOT_HEIGHT}
    return _draw("scatter", dots=dots, line=line, wanted=1 - y(wanted), legend=colors is not None, **axes)


def shortened(name: str, max_length: int = 18) -> str:
    """Return a name that fits into a chart on a phone."""
    return name if len(name) <= max_length else name[: max_length - 1] + "…"


@cache
def templates() -> jinja2.Environment:
    """Return the templates, which escape all values."""
    loader = jinja2.PackageLoader("rldistill", "reporting/templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a template, filled with values, as one HTML file that opens offline."""
    page = templates().get_template(template).render(values)
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _draw(macro: str, **values: Any) -> Markup:
    module = templates().get_template("charts.html.jinja").module
    draw: Callable[..., Markup] = getattr(module, macro)
    return draw(**values)


def _round_numbers(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    step = math.ceil((high - low) / 6)
    return [10.0**exponent for exponent in range(math.ceil(low), math.floor(high) + 1, step)]


def _tick_text(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
