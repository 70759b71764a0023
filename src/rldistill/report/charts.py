"""Charts as inline SVG: small, offline, coloured by the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

Series = dict[str, list[tuple[float, float]]]
WIDTH, LEFT, RIGHT, ROW = 720, 150, 24, 44


def returns_chart(evaluation: dict[str, Any]) -> str:
    """Every episode's return as a dot, the mean and its 95% interval as a mark."""
    policies = evaluation["policies"]
    episodes = {name: [x for run in entry["runs"] for x in run["returns"]] for name, entry in policies.items()}
    low, high = _range([x for values in episodes.values() for x in values])
    height = ROW * len(policies) + 40
    parts = []
    for number, (name, entry) in enumerate(policies.items()):
        y = ROW * number + ROW // 2
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts += [
            f'<circle class="dot" cx="{_x(value, low, high):.1f}" cy="{y + (i % 5 - 2) * 4}" r="2.5"/>'
            for i, value in enumerate(episodes[name])
        ]
        left, right = (_x(end, low, high) for end in entry["ci95"])
        parts.append(f'<line class="ci" x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="mean" cx="{_x(entry["mean"], low, high):.1f}" cy="{y}" r="5"/>')
    for tick in _ticks(low, high):
        x = _x(tick, low, high)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 32}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 14}" text-anchor="middle">{tick:g}</text>')
    return _svg(height, parts, "Returns of every episode, with means and 95% intervals")


def lines_chart(series: Series, across: str, up: str) -> str:
    """One line for each name."""
    points = [point for line in series.values() for point in line]
    x_low, x_high = _range([x for x, _ in points])
    y_low, y_high = _range([y for _, y in points])
    height, bottom = 300, 250

    def place(point: tuple[float, float]) -> str:
        y = bottom - (point[1] - y_low) / (y_high - y_low) * (bottom - 20)
        return f"{_x(point[0], x_low, x_high):.1f},{y:.1f}"

    parts = []
    for tick in _ticks(y_low, y_high):
        y = bottom - (tick - y_low) / (y_high - y_low) * (bottom - 20)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x_low, x_high):
        parts.append(f'<text x="{_x(tick, x_low, x_high):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for number, (name, line) in enumerate(series.items()):
        parts.append(f'<polyline class="line c{number % 6}" points="{" ".join(map(place, line))}"/>')
        parts.append(f'<text class="key c{number % 6}" x="8" y="{30 + 18 * number}">{escape(name)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{height - 8}" text-anchor="middle">{escape(across)}</text>')
    return _svg(height, parts, f"{up} against {across}")


def _svg(height: int, parts: list[str], title: str) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers between the ends."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 8)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]
