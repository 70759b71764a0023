"""The features `objects` as ONNX operators."""

import itertools
from typing import Any

import numpy as np

from rldistill.exporters.program import Node

FLOAT, INT64, BOOL = 1, 7, 9


def add_objects(graph: Any, node: Node, source: str) -> str:
    """Add the operators of an `objects` operation to a graph and return the name of its result `[B, N]`."""
    regions, threshold = node.settings["regions"], node.settings["threshold"]
    frames = node.inputs[0].shape[0]
    last = frames - 1
    found = [_positions(graph, source, region, frames, threshold) for region in regions]

    def newest(values: str, number: int = last) -> str:
        """Return one frame of `[B, T, K]`, as `[B, K]`."""
        return str(graph.add("Squeeze", [graph.slice_axis(values, number, number + 1, 1), graph.integers(1)]))

    present = [graph.add("Cast", [graph.add("Greater", [size, _number(graph, 0)])], to=FLOAT) for _, size in found]
    zeros = graph.array(np.zeros((1, 2), np.float32))
    own, speeds = [], []
    for (position, _), seen in zip(found, present, strict=True):
        own.append(newest(position))
        moves = [
            graph.add("Mul", [
                graph.add("Sub", [newest(position, t), newest(position, t - 1)]),
                graph.add("Mul", [newest(seen, t), newest(seen, t - 1)]),
            ])
            for t in range(last, 0, -1)
        ]  # fmt: skip
        own += moves
        speeds.append(moves[0] if moves else zeros)
    at, seen = [newest(position) for position, _ in found], [newest(values) for values in present]
    parts = [*own, *(newest(size) for _, size in found)]
    for a, b in itertools.combinations(range(len(regions)), 2):
        difference = graph.add("Sub", [at[a], at[b]])
        parts.append(graph.add("Mul", [difference, graph.add("Mul", [seen[a], seen[b]])]))
    for a, b in itertools.permutations(range(len(regions)), 2) if frames > 1 else ():
        both = graph.add("Mul", [seen[a], seen[b]])
        for along in (1, 0):
            walls = regions[a][2 * (1 - along) : 2 * (1 - along) + 2]
            meeting = _meeting(graph, at[a], speeds[a], at[b], along, walls)
            parts += [graph.add("Mul", [value, both]) for value in meeting]
    return str(graph.add("Concat", parts, axis=1))


def _number(graph: Any, value: float) -> str:
    return str(graph.array(np.float32(value)))


def _positions(graph: Any, source: str, region: list[int], frames: int, threshold: int) -> tuple[str, str]:
    """Return row and column of the object of a region, `[B, T, 2]`, and its number of pixels, `[B, T, 1]`."""
    top, bottom, left, right = region
    inside = graph.slice_axis(graph.slice_axis(source, top, bottom, 2), left, right, 3)
    count = (bottom - top) * (right - left)
    pixels = graph.add("Reshape", [inside, graph.integers(-1, frames, count)])
    # The background is the largest bin of a histogram.
    indices = graph.add("Cast", [pixels], to=INT64)
    ones = graph.add("Cast", [graph.add("GreaterOrEqual", [indices, graph.integers(0)])], to=FLOAT)
    batch = graph.add("Shape", [pixels], start=0, end=1)
    shape = graph.add("Concat", [batch, graph.integers(frames, 256)], axis=0)
    bins = graph.add("Expand", [graph.array(np.zeros((1, 1, 1), np.float32)), shape])
    histogram = graph.add("ScatterElements", [bins, indices, ones], axis=2, reduction="add")
    background = graph.add("Cast", [graph.add("ArgMax", [histogram], axis=2, keepdims=1)], to=FLOAT)
    values = graph.add("Cast", [pixels], to=FLOAT)
    difference = graph.add("Abs", [graph.add("Sub", [values, background])])
    far = graph.add("Cast", [graph.add("Greater", [difference, _number(graph, threshold)])], to=FLOAT)
    difference = graph.add("Mul", [difference, far])
    rows, columns = np.mgrid[top:bottom, left:right].reshape(2, -1).astype(np.float32)
    coordinates = graph.array(np.stack([rows, columns, np.ones_like(rows)], 1))
    sums = graph.add("MatMul", [difference, coordinates])
    total = graph.add("Max", [graph.slice_axis(sums, 2, 3, 2), _number(graph, 1)])
    position = graph.add("Div", [graph.slice_axis(sums, 0, 2, 2), total])
    return str(position), str(graph.add("ReduceSum", [far, graph.integers(2)], keepdims=1))


def _meeting(graph: Any, position: str, speed: str, target: str, along: int, walls: list[int]) -> tuple[str, str]:
    """Return 1 / (1 + frames) until an object is level with its target, and their distance across, both `[B, 1]`."""

    def axis(values: str, number: int) -> str:
        return str(graph.slice_axis(values, number, number + 1, 1))

    def add(operator: str, *inputs: str) -> str:
        return str(graph.add(operator, list(inputs)))

    across, low = 1 - along, walls[0]
    period = 2 * max(walls[1] - 1 - low, 1)
    zero, one = _number(graph, 0), _number(graph, 1)
    distance, movement = add("Sub", axis(target, along), axis(position, along)), axis(speed, along)
    moves = add("Greater", add("Mul", distance, movement), zero)
    frames = add("Where", moves, add("Div", distance, add("Where", moves, movement, one)), zero)
    approaches = graph.add("Cast", [add("Or", moves, add("Equal", distance, zero))], to=FLOAT)
    moved = add("Add", axis(position, across), add("Mul", frames, axis(speed, across)))
    shifted, length = add("Sub", moved, _number(graph, low)), _number(graph, period)
    folded = add("Sub", shifted, add("Mul", length, add("Floor", add("Div", shifted, length))))
    arrival = add("Add", _number(graph, low), add("Min", folded, add("Sub", length, folded)))
    offset = add("Sub", arrival, axis(target, across))
    return add("Div", approaches, add("Add", one, frames)), add("Mul", offset, approaches)
