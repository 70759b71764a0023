"""Programs as C99 source: no allocation, and no library but math.h."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.exporters.c_runtime import ACTIVATIONS, LONG_SUM, operations
from rldistill.exporters.program import ExportError, Node, Program
from rldistill.exporters.texts import render

TYPES = {
    "float32": "float", "float64": "double", "uint8": "uint8_t", "int8": "int8_t", "bool": "uint8_t",
    "int16": "int16_t", "uint16": "uint16_t", "int32": "int32_t", "uint32": "uint32_t", "int64": "int64_t",
}  # fmt: skip
ELEMENTWISE = ("unary", "add", "multiply", "standardize", "clip", "mask")
VIEWS = ("input", "constant", "reshape")
"""Operations without a statement."""

NUMBERS_PER_LINE = 8


@dataclass(frozen=True)
class CSource:
    """Source files of a policy; `memory` is the size of `policy_t` in bytes."""

    header: str
    source: str
    memory: int


def write_c(program: Program, title: str) -> CSource:
    """Return the source files of a program; `title` is the comment at their head.

    Raises:
        ExportError: The observation has numbers of a type that C does not have.
    """
    if unknown := {node.dtype for node in program.entries.values()} - {*TYPES}:
        raise ExportError(
            f"c: C has no {unknown.pop()}, the type of the observation. Use onnx, or convert it by DtypeObservation in "
            "env.wrappers."
        )
    writer = _Writer(program)
    statements = writer.statements()
    state = 0 if program.state is None else program.state.size
    values = {
        "title": re.sub(r"[^ -~]", "?", title).replace("*/", "* /"),
        "parameters": ", ".join(writer.parameters()),
        "state": state,
        "work_size": writer.work_size,
        "inputs": {writer.inputs[node]: node for node in program.entries.values()},
        "num_params": program.params.size,
        "num_actions": max(program.action.size, 1),
        "functions": "".join(writer.functions.values()),
        "tables": writer.tables,
        "statements": statements,
    }
    header, source = render("student.h", **values), render("student.c", **values)
    return CSource(header, source, 4 * (state + writer.work_size))


class _Writer:
    """Statements, tables and functions of one program; each method `_<kind>` returns the statements of an operation."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.functions: dict[str, str] = {}
        self.tables: list[str] = []
        self.work_size = 0
        names = input_names(program.entries)
        self.inputs = {node: names[key] for key, node in program.entries.items()}
        if program.state is not None:
            self.inputs[program.state] = "policy->state"
        self._users: dict[Node, list[Node]] = {}
        for node in program.nodes:
            for source in node.inputs:
                self._users.setdefault(source, []).append(node)
        self._offsets: dict[Node, int] = {}
        self._allocate()

    def parameters(self) -> list[str]:
        """Return the parameters of `policy_step`."""
        observation = [f"const {TYPES[node.dtype]} *{self.inputs[node]}" for node in self.program.entries.values()]
        action = "int64_t" if self.program.action.dtype == "int64" else "float"
        return ["policy_t *policy", *observation, f"{action} *action", "float *params"]

    def statements(self) -> list[str]:
        """Return the statements of `policy_step`."""
        program, lines = self.program, [f"(void){name};" for name in self.inputs.values()]
        for node in program.nodes:
            if node in self._offsets:
                lines += getattr(self, f"_{node.kind}")(node, f"work + {self._offsets[node]}")
        lines += getattr(self, f"_{program.action.kind}")(program.action, "action")
        lines.append(self._copy(program.params, "params"))
        if program.next_state is not None:
            lines.append(self._copy(program.next_state, "policy->state"))
        return lines

    # Memory: the results of operations share `work`; the place of a result is free after its last use.

    def _allocate(self) -> None:
        nodes = self.program.nodes
        last_use: dict[Node, float] = {}
        for number, node in enumerate(nodes):
            for source in node.inputs:
                last_use[self._root(source)] = number
        for output in filter(None, (self.program.params, self.program.next_state)):
            last_use[self._root(output)] = math.inf
        live: dict[Node, tuple[int, int]] = {}
        for number, node in enumerate(nodes):
            if (
                node.kind in VIEWS
                or node is self.program.action
                or self._is_folded(node)
                or self._root(node) is not node
            ):
                continue
            size = node.size + _scratch(node)
            dying = [source for source in live if last_use[source] == number]
            place = next(
                (live[source][0] for source in dying if node.kind in ELEMENTWISE and live[source][1] == size), None
            )
            for source in dying if place is not None else []:
                del live[source]
            if place is None:
                place = 0
                for start, taken in sorted(live.values()):
                    if start - place >= size:
                        break
                    place = max(place, start + taken)
            live = {other: span for other, span in live.items() if last_use[other] > number}
            live[node] = (place, size)
            self._offsets[node] = place
            self.work_size = max(self.work_size, place + size)

    def _root(self, node: Node) -> Node:
        """Return the operation whose memory a view shows."""
        while node.kind == "reshape" or self._is_range(node):
            node = node.inputs[0]
        return node

    def _is_range(self, node: Node) -> bool:
        return node.kind == "slice" and len(node.inputs[0].shape) == 1 and self._type(node.inputs[0]) == "float"

    def _is_folded(self, node: Node) -> bool:
        """Return True if the weights of the next layers scale these pixels, which saves a float for each."""
        if node.kind != "standardize" or node.arrays["mean"].size > 1 or node.inputs[0].kind != "input":
            return False
        users = [user for view in self._views(node) for user in self._users.get(view, ()) if user.kind != "reshape"]
        direct = [user.kind == "linear" or (user.kind == "conv" and not user.settings["padding"]) for user in users]
        return node.inputs[0].dtype == "uint8" and all(direct)

    def _views(self, node: Node) -> list[Node]:
        reshaped = [user for user in self._users.get(node, ()) if user.kind == "reshape"]
        return [node, *(view for user in reshaped for view in self._views(user))]

    # Expressions

    def _type(self, node: Node) -> str:
        """Return the C type of the numbers of a node: all but inputs are floats."""
        root = node
        while root.kind == "reshape":
            root = root.inputs[0]
        return TYPES[root.dtype] if root.kind == "input" else "float"

    def _pointer(self, node: Node) -> str:
        if node.kind == "reshape":
            return self._pointer(node.inputs[0])
        if self._is_range(node):
            return f"{self._pointer(node.inputs[0])} + {node.settings['start']}"
        if node.kind == "constant":
            return self._table(node.arrays["value"])
        return self.inputs.get(node) or f"work + {self._offsets[node]}"

    def _table(self, values: NDArray[np.generic], kind: str = "float") -> str:
        """Add an array and return its name; equal arrays are one."""
        text = c_initializer(values, kind)
        for number, table in enumerate(self.tables):
            if table == f"static const {kind} table_{number}{text}":
                return f"table_{number}"
        self.tables.append(f"static const {kind} table_{len(self.tables)}{text}")
        return f"table_{len(self.tables) - 1}"

    def _call(self, function: str, kind: str, *arguments: object) -> str:
        """Return a call, and add the function for numbers of the C type `kind`."""
        text = operations()[function]
        name = f"{function}_{kind}" if f"{function}_T" in text else function
        self.functions[name] = re.sub(r"\bT\b", kind, text.replace(f"{function}_T", name))
        return f"{name}({', '.join(map(str, arguments))});"

    def _copy(self, node: Node, out: str) -> str:
        return self._call("copy", self._type(node), self._pointer(node), node.size, out)

    def _layer(self, node: Node) -> tuple[Node, list[str], NDArray[np.float32]]:
        """Return the input of a layer, its first arguments and its weights, with the scale of folded pixels in them.

        Their mean stays an argument: in the biases it would cancel with large sums, which costs precision.
        """
        (x,), weight, mean = node.inputs, node.arrays["weight"], 0.0
        root = self._root(x)
        if self._is_folded(root):
            x, mean, weight = root.inputs[0], float(root.arrays["mean"].item()), weight / root.arrays["std"].item()
        return x, [self._pointer(x), c_number(float(np.float32(mean)), "float")], weight.astype(np.float32)

    # Operations

    def _one_hot(self, node: Node, out: str) -> list[str]:
        (x,), sizes = node.inputs, np.array(node.settings["sizes"])
        table = self._table(sizes, "int32_t")
        return [self._call("one_hot", self._type(x), self._pointer(x), table, len(sizes), out)]

    def _standardize(self, node: Node, out: str) -> list[str]:
        (x,), mean, std = node.inputs, node.arrays["mean"], node.arrays["std"]
        tables = self._table(mean), self._table(std)
        step = int(mean.size > 1)
        return [self._call("standardize", self._type(x), self._pointer(x), *tables, step, node.size, out)]

    def _clip(self, node: Node, out: str) -> list[str]:
        low, high = np.broadcast_arrays(node.arrays["low"], node.arrays["high"])
        tables = self._table(low), self._table(high)
        return [self._call("clip", "float", self._pointer(node.inputs[0]), *tables, int(low.size > 1), node.size, out)]

    def _concat(self, node: Node, out: str) -> list[str]:
        starts = np.cumsum([0, *(source.size for source in node.inputs)])
        return [self._copy(source, f"{out} + {start}") for source, start in zip(node.inputs, starts, strict=False)]

    def _slice(self, node: Node, out: str) -> list[str]:
        (x,), start, axis = node.inputs, node.settings["start"], node.settings["axis"]
        inner = math.prod(x.shape[axis + 1 :])
        sizes = math.prod(x.shape[:axis]), x.shape[axis] * inner, start * inner, node.shape[axis] * inner
        return [self._call("slice", self._type(x), self._pointer(x), *sizes, out)]

    def _transpose(self, node: Node, out: str) -> list[str]:
        (x,) = node.inputs
        return [self._call("transpose", self._type(x), self._pointer(x), *x.shape, out)]

    def _linear(self, node: Node, out: str) -> list[str]:
        x, first, weight = self._layer(node)
        tables = self._table(weight.T), self._table(node.arrays["bias"])
        kind, arguments = self._type(x), (*first, *tables, x.size, node.size)
        if _scratch(node):
            return [self._call("long_linear", kind, *arguments, f"{out} + {node.size}", out)]
        return [self._call("linear", kind, *arguments, out)]

    def _conv(self, node: Node, out: str) -> list[str]:
        x, first, weight = self._layer(node)
        tables = self._table(weight.transpose(1, 2, 3, 0)), self._table(node.arrays["bias"])
        sizes = *x.shape, len(weight), weight.shape[-1], node.settings["stride"], node.settings["padding"]
        sums = f"{out} + {node.size}"
        return [self._call("conv", self._type(x), *first, *tables, *sizes, sums, out)]

    def _max_pool(self, node: Node, out: str) -> list[str]:
        (x,), settings = node.inputs, node.settings
        sizes = *x.shape, settings["kernel"], settings["stride"], settings["padding"]
        return [self._call("max_pool", "float", self._pointer(x), *sizes, out)]

    def _unary(self, node: Node, out: str) -> list[str]:
        function = node.settings["function"]
        name = f"apply_{function}"
        self.functions[name] = operations()["unary"].replace("NAME", name).replace("EXPRESSION", ACTIVATIONS[function])
        return [f"{name}({self._pointer(node.inputs[0])}, {node.size}, {out});"]

    def _add(self, node: Node, out: str) -> list[str]:
        return [self._call(node.kind, "float", *map(self._pointer, node.inputs), node.size, out)]

    _multiply = _add

    def _tree(self, node: Node, out: str) -> list[str]:
        kind = "int16_t" if max(node.inputs[0].size, len(node.arrays["feature"])) < 1 << 15 else "int32_t"
        feature, left, right = (self._table(node.arrays[key], kind) for key in ("feature", "left", "right"))
        threshold, value = self._table(node.arrays["threshold"]), self._table(node.arrays["value"])
        arguments = self._pointer(node.inputs[0]), feature, threshold, left, right, value, node.size
        return [self._call("tree", kind, *arguments, out)]

    def _objects(self, node: Node, out: str) -> list[str]:
        (x,), regions = node.inputs, node.settings["regions"]
        table = self._table(np.array(regions), "int32_t")
        arguments = self._pointer(x), table, len(regions), *x.shape, node.settings["threshold"], f"{out} + {node.size}"
        return [self._call("objects", self._type(x), *arguments, out)]

    def _mask(self, node: Node, out: str) -> list[str]:
        params, legal = node.inputs
        illegal = c_number(node.settings["value"], "float")
        arguments = self._pointer(params), self._pointer(legal), illegal, node.size
        return [self._call("mask", self._type(legal), *arguments, out)]

    def _argmax(self, node: Node, out: str) -> list[str]:
        pointer, start, lines = self._pointer(node.inputs[0]), 0, []
        for number, size in enumerate(node.settings["sizes"]):
            lines.append(f"{out}[{number}] = {self._call('argmax', 'float', f'{pointer} + {start}', size)}")
            start += size
        return lines

    def _positive(self, node: Node, out: str) -> list[str]:
        params = f"({self._pointer(node.inputs[0])})"
        return [f"for (int32_t i = 0; i < {node.size}; i++) {out}[i] = {params}[i] > 0.0f;"]


def _scratch(node: Node) -> int:
    """Return the number of intermediate results: sums of channels, or positions and sizes of objects."""
    if node.kind == "objects":
        return 3 * len(node.settings["regions"]) * node.inputs[0].shape[0]
    if node.kind == "linear":
        return node.size if node.inputs[0].size > LONG_SUM else 0
    return node.shape[0] if node.kind == "conv" else 0


def c_number(value: float, kind: str) -> str:
    """Return a number as a literal of C99; floating-point numbers are exact, in hexadecimal."""
    if kind not in ("float", "double"):
        return str(int(value))
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    mantissa, exponent = float(value).hex().split("p")
    whole, _, fraction = mantissa.partition(".")
    fraction = fraction.rstrip("0")
    return f"{whole}{'.' + fraction if fraction else ''}p{exponent}{'f' if kind == 'float' else ''}"


def c_initializer(values: NDArray[Any], kind: str) -> str:
    """Return the size and the numbers of an array, which follow its name in a definition."""
    numbers = [c_number(value, kind) for value in values.ravel().tolist()]
    lines = [", ".join(numbers[at : at + NUMBERS_PER_LINE]) for at in range(0, len(numbers), NUMBERS_PER_LINE)]
    return f"[{len(numbers)}] = {{\n    " + ",\n    ".join(lines) + "\n};"


def input_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the C names of the entries of an observation: `obs`, or `obs_<key>` for those of a dict."""
    names: dict[str, str] = {}
    for number, key in enumerate(keys):
        name = f"obs_{re.sub(r'[^a-zA-Z0-9_]', '_', key)}" if key else "obs"
        names[key] = name if name not in names.values() else f"{name}_{number}"
    return names
