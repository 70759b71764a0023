"""Charts as inline SVG: small, offline, coloured by the page's style; `charts.html.jinja` draws what is placed here.

Horizontal places are percentages and heights are pixels, so that a chart fills a telephone or a desk and its text keeps
its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

Line = list[tuple[float, float]]
Series = dict[str, Line]

ROW = 68
PLOT = 220
MOST_DOTS = 600
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Scale:
    """From a value to 0..1 between the ends of an axis."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], room: float = 0.04, log: bool = False) -> Scale:
        """The scale that holds all values, with some room at both ends."""
        ends = [math.log10(end) if log else end for end in (min(values), max(values))]
        space = (ends[1] - ends[0]) * room if ends[1] > ends[0] else max(1.0, abs(ends[0]) * 0.1)
        return cls(ends[0] - space, ends[1] + space, log)

    def __call__(self, value: float) -> float:
        return ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts of a few round numbers between the ends."""
        values = _decades(self.low, self.high) if self.log else _round_numbers(self.low, self.high)
        return [(self(value), _short(value)) for value in values]


def palette(evaluation: dict[str, Any]) -> dict[str, str]:
    """The class that paints each policy: grey for what is compared against, a colour for each student."""
    kinds = {name: entry["kind"] for name, entry in evaluation["policies"].items()}
    students = [name for name, kind in kinds.items() if kind == "student"]
    return {name: f"c{students.index(name) % 6}" if name in students else kind for name, kind in kinds.items()}


def returns_chart(evaluation: dict[str, Any]) -> Markup:
    """Every episode's return as a dot, the mean and its 95% interval as a mark, the teacher's mean as a dashed line.

    Dots far away from all others lie at the edge; of more than MOST_DOTS, every second, third, ... is drawn.
    """
    policies, paint = evaluation["policies"], palette(evaluation)
    returns = {name: [x for run in entry["runs"] for x in run["returns"]] for name, entry in policies.items()}
    low, high = bulk([x for values in returns.values() for x in values])
    across = Scale.over([low, high])

    def place(value: float) -> float:
        return across(min(max(value, low), high))

    rows = [
        {
            "name": shortened(name),
            "paint": paint[name],
            "top": ROW * number,
            "mean": entry["mean"],
            "ci95": entry["ci95"],
            "mark": place(entry["mean"]),
            "ends": [place(end) for end in entry["ci95"]],
            "dots": [(place(x), _jitter(k), x) for k, x in enumerate(_some(returns[name]))],
            "opacity": max(0.14, min(0.55, 4 / math.sqrt(len(returns[name])))),
        }
        for number, (name, entry) in enumerate(policies.items())
    ]
    teachers = [place(entry["mean"]) for entry in policies.values() if entry["kind"] == "teacher"]
    beyond = sum(not low <= x <= high for values in returns.values() for x in values)
    return _draw(
        "returns",
        rows=rows,
        across=across,
        teachers=teachers,
        height=ROW * len(rows),
        number=number_text,
        beyond=beyond,
        thinned=any(len(values) > MOST_DOTS for values in returns.values()),
    )


def bulk(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value, or where a few outliers would leave no room for the others, less than that."""
    ordered = sorted(values)
    low, high = (ordered[round(part * (len(ordered) - 1))] for part in (0.05, 0.95))
    span = high - low
    if span <= 0:
        return ordered[0], ordered[-1]
    return (
        ordered[0] if ordered[0] >= low - span else low - span / 4,
        ordered[-1] if ordered[-1] <= high + span else high + span / 4,
    )


def lines_chart(
    series: Series,
    across: str,
    up: str,
    faint: Mapping[str, Sequence[Line]] | None = None,
    paint: Mapping[str, str] | None = None,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    within: tuple[float, float] | None = None,
) -> Markup:
    """One line for each name; a scale is logarithmic where its values span decades.

    Args:
        series: points (x, y) for each name.
        across: what x is.
        up: what y is.
        faint: more lines of a name (its training seeds), drawn thin and in its colour.
        paint: the class of each name.
        bands: (x, low, high) around a name's line.
        within: the ends of the x axis, if not those of the points.
    """
    faint, paint, bands = faint or {}, paint or {}, bands or {}
    points = [point for lines in (series.values(), *faint.values()) for line in lines for point in line]
    ys = [y for _, y in points] + [y for band in bands.values() for _, *ends in band for y in ends]
    log = min(ys) > 0 and max(ys) / min(ys) > 50
    x, y = Scale.over(within or [x for x, _ in points], room=0), Scale.over(ys, log=log)

    def path(line: Line) -> str:
        return " ".join(f"{100 * x(a):.2f},{PLOT * (1 - y(b)):.1f}" for a, b in line)

    def around(band: Sequence[tuple[float, float, float]]) -> str:
        return path([(a, low) for a, low, _ in band] + [(a, high) for a, _, high in reversed(band)])

    drawn = [
        {
            "name": name,
            "paint": paint.get(name, f"c{number % 6}"),
            "line": path(line),
            "band": around(bands[name]) if name in bands else "",
            "faint": [path(each) for each in faint.get(name, ())],
            "end": None if within else (x(line[-1][0]), y(line[-1][1])),
        }
        for number, (name, line) in enumerate(series.items())
    ]
    title = f"{up} against {across}" + (", logarithmic" if log else "")
    return _draw("lines", drawn=drawn, x=x, y=y, across=across, title=title, height=PLOT)


def scatter_chart(
    points: Mapping[str, tuple[float, float]],
    joined: Sequence[str],
    across: str,
    up: str,
    wanted: float,
    paint: Mapping[str, str] | None = None,
) -> Markup:
    """A dot for each name; those of `joined` are joined in this order, and `wanted` is a dashed line.

    Across is logarithmic; dots far below the others and the dashed line lie on the bottom. With `paint`, the class of
    each name, all are in a legend; without, those of `joined` are named in the picture.
    """
    floor = min(0.0, wanted)
    shown = {name: (a, max(b, floor)) for name, (a, b) in points.items()}
    x = Scale.over([a for a, _ in shown.values()] or [1.0], room=0.06, log=True)
    y = Scale.over([wanted, *(b for _, b in shown.values())])
    dots = [
        {
            "name": name if paint else shortened(name),
            "paint": "c0" if paint is None else paint[name],
            "x": x(a),
            "y": 1 - y(b),
            "on": name in joined,
            "said": f"{name}: {a:,.0f} {across}, {points[name][1]:.3f}",
        }
        for name, (a, b) in shown.items()
    ]
    line = " ".join(f"{100 * x(a):.2f},{PLOT * (1 - y(b)):.1f}" for a, b in (shown[name] for name in joined))
    return _draw(
        "scatter",
        dots=dots,
        line=line,
        x=x,
        y=y,
        across=across,
        title=f"{up} against {across}, logarithmic",
        height=PLOT,
        wanted=1 - y(wanted),
        legend=paint is not None,
    )


def number_text(value: float) -> str:
    """A return, with as many digits as are read."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:,.2f}"


def shortened(name: str, most: int = 18) -> str:
    """A name that has room in a chart on a phone."""
    return name if len(name) <= most else name[: most - 1] + "…"


@cache
def templates() -> jinja2.Environment:
    """The templates of the report; whatever they are given is escaped."""
    loader = jinja2.PackageLoader("rldistill", "reporting/templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


def _draw(macro: str, **values: Any) -> Markup:
    module = templates().get_template("charts.html.jinja").module
    draw: Callable[..., Markup] = getattr(module, macro)
    return draw(**values)


def _some(values: Sequence[float]) -> Sequence[float]:
    return values[:: math.ceil(len(values) / MOST_DOTS)]


def _jitter(number: int) -> float:
    """-1 to 1, evenly spread and the same every time."""
    return 2 * (number * GOLDEN % 1) - 1


def _round_numbers(low: float, high: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    return [round(number * step, 12) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    every = math.ceil((high - low) / 6)
    return [10.0**exponent for exponent in range(math.ceil(low), math.floor(high) + 1, every)]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
