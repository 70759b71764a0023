"""Programs: policies as lists of simple operations on the numbers of one observation.

`lowering` translates layers of PyTorch into them; the writers of ONNX, C and JavaScript translate them further.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from rldistill.core.errors import RLDistillError
from rldistill.core.spec import PolicySpec

Kind = Literal[
    "input", "constant", "one_hot", "standardize", "clip", "concat", "slice", "reshape", "transpose", "linear", "conv",
    "max_pool", "objects", "unary", "add", "multiply", "tree", "mask", "argmax", "positive",
]  # fmt: skip
"""Operations. `unary` is a function of each number: an activation by its name, or `cos`, `log`, `negate`."""


class ExportError(RLDistillError):
    """Policy that cannot be written in a format."""


@dataclass(frozen=True, eq=False)
class Node:
    """Result of one operation.

    Attributes:
        kind: Operation.
        shape: Shape for one observation.
        inputs: Results that it takes.
        arrays: Its constant numbers, float32 or int64.
        settings: Other settings.
        dtype: Type of the numbers; of all operations but inputs and actions it is float32.
    """

    kind: Kind
    shape: tuple[int, ...]
    inputs: tuple[Node, ...] = ()
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


Entries = dict[str, Node]
"""Entries of an observation by name; one with an empty name if it is not a dict."""


@dataclass(frozen=True)
class Program:
    """Operations of a policy.

    Attributes:
        spec: Observations and actions; those of the environment if the policy is wrapped for it.
        entries: Inputs by the name of their entry of the observation.
        params: Parameters of the head, with illegal actions ruled out.
        action: Most likely action: int64 choices or bits, or float32 numbers within their bounds.
        state: State before the observation; None for a feed-forward policy.
        next_state: State after it.
    """

    spec: PolicySpec
    entries: Entries
    params: Node
    action: Node
    state: Node | None = None
    next_state: Node | None = None

    @property
    def nodes(self) -> list[Node]:
        """All operations, each after its inputs."""
        ordered: dict[Node, None] = dict.fromkeys(self.entries.values())
        if self.state is not None:
            ordered[self.state] = None

        def visit(node: Node) -> Iterator[Node]:
            for source in node.inputs:
                if source not in ordered:
                    yield from visit(source)
            if node not in ordered:
                yield node

        for output in filter(None, (self.params, self.next_state, self.action)):
            for node in visit(output):
                ordered[node] = None
        return [*ordered]


def array(tensor: Tensor) -> NDArray[np.float32]:
    """Return the numbers of a tensor as contiguous float32."""
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())


def constant(values: NDArray[np.float32]) -> Node:
    """Return fixed numbers."""
    return Node("constant", values.shape, (), {"value": values})


def standardize(x: Node, mean: NDArray[np.floating[Any]], std: NDArray[np.floating[Any]]) -> Node:
    """Return (x - mean) / std; both arrays have the shape of `x`, or one number."""
    shape = x.shape if mean.size > 1 or std.size > 1 else ()
    arrays = {
        "mean": np.broadcast_to(mean.reshape(-1) if mean.size == 1 else mean.reshape(x.shape), shape or (1,)),
        "std": np.broadcast_to(std.reshape(-1) if std.size == 1 else std.reshape(x.shape), shape or (1,)),
    }
    return Node("standardize", x.shape, (x,), {key: value.astype(np.float32) for key, value in arrays.items()})


def scaled(x: Node, factor: float) -> Node:
    """Return factor x."""
    return standardize(x, np.zeros(1, np.float32), np.array([1 / factor], np.float32))


def clip(x: Node, low: Any, high: Any) -> Node:
    """Return x between two numbers, or two arrays of its shape."""
    arrays = {"low": np.atleast_1d(np.asarray(low, np.float32)), "high": np.atleast_1d(np.asarray(high, np.float32))}
    return Node("clip", x.shape, (x,), arrays)


def concat(parts: list[Node]) -> Node:
    """Return vectors one after the other."""
    return parts[0] if len(parts) == 1 else Node("concat", (sum(part.size for part in parts),), tuple(parts))


def take(x: Node, start: int, stop: int, axis: int = 0) -> Node:
    """Return a range of indices of an axis."""
    shape = tuple(stop - start if number == axis else size for number, size in enumerate(x.shape))
    return Node("slice", shape, (x,), settings={"start": start, "stop": stop, "axis": axis})


def reshape(x: Node, shape: tuple[int, ...]) -> Node:
    """Return the numbers in another shape."""
    return x if x.shape == shape else Node("reshape", shape, (x,), dtype=x.dtype)


def flat(x: Node) -> Node:
    """Return the numbers as a vector."""
    return reshape(x, (x.size,))


def transpose(x: Node, axes: tuple[int, ...]) -> Node:
    """Return an array with its axes in another order."""
    return Node("transpose", tuple(x.shape[axis] for axis in axes), (x,), settings={"axes": axes}, dtype=x.dtype)


def linear(x: Node, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Node:
    """Return weight x + bias, the weight `[outputs, inputs]`."""
    return Node("linear", (len(bias),), (x,), {"weight": weight, "bias": bias})


def unary(x: Node, function: str) -> Node:
    """Return a function of each number."""
    return x if function == "identity" else Node("unary", x.shape, (x,), settings={"function": function})


def add(x: Node, y: Node) -> Node:
    """Return x + y."""
    return Node("add", x.shape, (x, y))


def multiply(x: Node, y: Node) -> Node:
    """Return x y, number by number."""
    return Node("multiply", x.shape, (x, y))


def gru_cell(cell: nn.GRUCell, x: Node, state: Node) -> Node:
    """Return the next state: r, z = sigmoid(..), n = tanh(W x + b + r (U h + c)), h' = n + z (h - n)."""
    size = cell.hidden_size
    inner = linear(x, array(cell.weight_ih), array(cell.bias_ih))
    outer = linear(state, array(cell.weight_hh), array(cell.bias_hh))
    gates = unary(add(take(inner, 0, 2 * size), take(outer, 0, 2 * size)), "sigmoid")
    reset, update = take(gates, 0, size), take(gates, size, 2 * size)
    new = unary(add(take(inner, 2 * size, 3 * size), multiply(reset, take(outer, 2 * size, 3 * size))), "tanh")
    return add(new, multiply(update, add(state, unary(new, "negate"))))


def lstm_cells(layers: nn.LSTM, x: Node, state: Node) -> tuple[Node, Node]:
    """Return the output and the next state `[2, layers, hidden]` of one step."""
    size, flat_state = layers.hidden_size, flat(state)
    outputs, cells = [], []
    for number in range(layers.num_layers):
        weights = {
            name: array(getattr(layers, f"{name}_l{number}"))
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        start = number * size
        before = take(flat_state, start, start + size)
        cell = take(flat_state, layers.num_layers * size + start, layers.num_layers * size + start + size)
        sums = add(
            linear(x, weights["weight_ih"], weights["bias_ih"]),
            linear(before, weights["weight_hh"], weights["bias_hh"]),
        )
        gates = unary(sums, "sigmoid")
        new = unary(take(sums, 2 * size, 3 * size), "tanh")
        cell = add(multiply(take(gates, size, 2 * size), cell), multiply(take(gates, 0, size), new))
        x = multiply(take(gates, 3 * size, 4 * size), unary(cell, "tanh"))
        outputs.append(x)
        cells.append(cell)
    return x, reshape(concat([*outputs, *cells]), state.shape)
