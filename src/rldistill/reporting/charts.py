"""Charts as inline SVG, drawn by `charts.html.jinja` and colored by the style sheet of the page.

Horizontal positions are percentages and heights are pixels, so that a chart fills a phone or a desktop window, and its
text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rldistill.evaluation.results import PolicyResult
from rldistill.evaluation.statistics import Estimate
from rldistill.evaluation.tables import interval_text, number_text
from rldistill.io.atomic import write_text

Line = list[tuple[float, float]]
Series = dict[str, Line]

PLOT_HEIGHT, MAX_DOTS, MAX_NAME_LENGTH = 220, 600, 18
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
        """Return the positions and texts of a few round numbers, or powers of ten."""
        if self.log:
            exponents = range(math.ceil(self.low), math.floor(self.high) + 1, math.ceil((self.high - self.low) / 6))
            values = [10.0**exponent for exponent in exponents]
        else:
            step = 10.0 ** math.floor(math.log10((self.high - self.low) / 3))
            step = next(step * factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= 6)
            values = [round(n * step, 12) for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [(self(value), _tick_text(value)) for value in values]


def palette(policies: Mapping[str, PolicyResult]) -> dict[str, str]:
    """Return the CSS class of each policy: gray for teacher, random play and baseline, a color for each student."""
    students = colors_of(name for name, entry in policies.items() if entry.kind == "student")
    return {name: students.get(name, entry.kind) for name, entry in policies.items()}


def colors_of(names: Iterable[str]) -> dict[str, str]:
    """Return a CSS class with a color for each name, by turns."""
    return {name: f"c{number % NUM_COLORS}" for number, name in enumerate(names)}


def returns_chart(
    rows: Mapping[str, tuple[Sequence[float], Estimate]], colors: Mapping[str, str], reference: str | None = None
) -> Markup:
    """Return a chart with a dot for each return, and the mean with its 95% interval.

    The mean of the row `reference` is a dashed line in all rows. Outliers lie at the edge; of more than MAX_DOTS
    returns, every second, third, ... is drawn.
    """
    everything = [value for returns, _ in rows.values() for value in returns]
    low, high = bulk(everything)
    scale = Scale.covering([low, high])
    # Multiples of the golden ratio spread evenly, so that dots of equal returns do not cover each other.
    heights = [2 * (k * GOLDEN_RATIO % 1) - 1 for k in range(MAX_DOTS)]
    return _draw(
        "returns",
        rows=rows,
        dots={name: returns[:: math.ceil(len(returns) / MAX_DOTS)] for name, (returns, _) in rows.items()},
        colors=colors,
        reference=reference,
        scale=scale,
        position=lambda value: scale(min(max(value, low), high)),
        heights=heights,
        outliers=sum(not low <= x <= high for x in everything),
        thinned=any(len(returns) > MAX_DOTS for returns, _ in rows.values()),
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
    """Options of a line chart: by name, CSS class, thin lines and band (x, low, high); and the ends of the x axis."""

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

    colors = {name: style.colors.get(name, color) for name, color in colors_of(series).items()}
    title = f"{y_title} against {x_title}" + (", logarithmic" if log else "")
    functions = {"x": x, "y": y, "path": path, "outline": outline}
    return _draw("lines", series=series, style=style, colors=colors, x_title=x_title, title=title, **functions)


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
    path = " ".join(f"{100 * x(a):.2f},{PLOT_HEIGHT * (1 - y(b)):.1f}" for a, b in (shown[name] for name in front))
    title, parts = f"{y_title} against {x_title}, logarithmic", {"shown": shown, "points": points, "front": front}
    axes = {"x": x, "y": y, "x_title": x_title, "title": title}
    return _draw("scatter", path=path, wanted=wanted, colors=colors, **axes, **parts)


def shortened(name: str) -> str:
    """Return a name that fits into a chart on a phone."""
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"


@cache
def templates() -> jinja2.Environment:
    """Return the templates, which escape all values."""
    loader = jinja2.PackageLoader("rldistill", "reporting/templates")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    made.globals |= {"number": number_text, "interval": interval_text, "shortened": shortened, "height": PLOT_HEIGHT}
    return made


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a template, filled with values, as one HTML file that opens offline."""
    write_text(path, templates().get_template(template).render(values))


def _draw(macro: str, **values: Any) -> Markup:
    draw: Callable[..., Markup] = getattr(templates().get_template("charts.html.jinja").module, macro)
    return draw(**values)


def _tick_text(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
