"""Inputs and outputs of an ONNX graph, by their purpose: observations, states, parameters of a head, actions."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError, SpecMismatchError, did_you_mean
from rldistill.core.heads import HeadKind
from rldistill.core.spec import PolicySpec

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
PARAMS: dict[str, HeadKind | None] = {"logits": None, "q_values": "q_values", "mean": None}
"""Names of parameters of a head in exported files, and the kind of the head if the name determines it."""
OTHER_OUTPUTS = re.compile(r"value|log_?prob|entropy|critic", re.I)
"""Names of outputs that are no actions."""
DIRECTIONS = r"(^|(?<=[._]))(in|out|input|output|next|prev|new|old|n|0|1)(?=[._]|$)|(in|out)$"


class StatePort(NamedTuple):
    """Input and output of one part of the state, with its shape without the batch and the axis of that."""

    source: str
    target: str
    shape: tuple[int, ...]
    axis: int

    def split(self, state: NDArray[Any], start: int) -> NDArray[Any]:
        """Return the part of states `[B, N]` that begins at column `start`."""
        part = state[:, start : start + int(np.prod(self.shape, dtype=int))]
        return np.ascontiguousarray(np.moveaxis(part.reshape(-1, *self.shape), 0, self.axis))

    def flat(self, value: NDArray[Any]) -> NDArray[Any]:
        """Return an output of the graph as `[B, N]`."""
        moved = np.moveaxis(value, self.axis, 0)
        return moved.reshape(len(moved), -1)


class Outputs(NamedTuple):
    """Outputs that are used: the parameters of a head of `kind`, or an action if `acts`; `known` by their names."""

    names: tuple[str, ...]
    kind: HeadKind | None = None
    acts: bool = False
    known: bool = False


class Ports(NamedTuple):
    """Inputs by the entries of the observation, an empty name for all of it, and the parts of the state."""

    entries: dict[str, Any]
    states: list[StatePort]


def find_ports(path: str, session: Any, spec: PolicySpec) -> Ports:
    """Return the ports of a graph; raise SpecMismatchError if they are not those of policies for `spec`."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    for entry in inputs:
        if entry.type not in DTYPES:
            raise SpecMismatchError(f"{path}: the input {entry.name} is of {entry.type}, expected numbers. Convert it.")
    states = [] if len(inputs) == 1 else _states(path, inputs, outputs, {*spec.entries, "obs"})
    rest = [entry for entry in inputs if entry.name not in {state.source for state in states}]
    if len(rest) == 1:
        _require_shape(path, rest[0], spec.flat_shape)
        return Ports({"": rest[0]}, states)
    named = {entry.name: entry for entry in rest}
    if {*named} != {*spec.entries}:
        entries = ", ".join(filter(None, spec.entries)) or "no entries by name"
        raise SpecMismatchError(
            f"{path}: has the inputs {', '.join(named)}, and the observation has {entries}. Export it with one input "
            "for each entry, and with an output for each state: state_in and state_out."
        )
    for key, part in spec.entries.items():
        _require_shape(path, named[key], part.shape)
    return Ports({key: named[key] for key in spec.entries}, states)


def _states(path: str, inputs: Sequence[Any], outputs: Sequence[Any], observed: set[str]) -> list[StatePort]:
    """Return the inputs that have an output of the same shape and of a similar name, `h_in` and `h_out`."""
    free = [output for output in outputs if "float" in output.type]
    states = []
    for entry in inputs:
        if entry.name in observed or "float" not in entry.type:
            continue
        similar = [output for output in free if _stem(output.name) == _stem(entry.name) and _alike(entry, output)]
        if len(similar) != 1:
            continue
        free.remove(similar[0])
        dynamic = [axis for axis, size in enumerate(entry.shape) if not isinstance(size, int)]
        axis = dynamic[0] if dynamic else 1 if len(entry.shape) == 3 else 0
        shape = tuple(size for number, size in enumerate(entry.shape) if number != axis)
        if len(dynamic) > 1 or not all(isinstance(size, int) and size > 0 for size in shape):
            raise SpecMismatchError(
                f"{path}: the state {entry.name} has the shape {entry.shape}. Fix all but the batch."
            )
        states.append(StatePort(entry.name, similar[0].name, shape, axis))
    return states


def _stem(name: str) -> str:
    return re.sub(r"[._]+", "_", re.sub(DIRECTIONS, "", name.lower())).strip("_")


def _alike(one: Any, other: Any) -> bool:
    fixed = [(a, b) for a, b in zip(one.shape, other.shape, strict=False) if isinstance(a, int) and isinstance(b, int)]
    return len(one.shape) == len(other.shape) and one.type == other.type and all(a == b for a, b in fixed)


def _require_shape(path: str, entry: Any, expected: tuple[int, ...]) -> None:
    shape = tuple(entry.shape)[1:]
    if len(shape) != len(expected) or any(
        isinstance(size, int) and size != wanted for size, wanted in zip(shape, expected, strict=True)
    ):
        raise SpecMismatchError(
            f"{path}: takes observations of {shape}, the environment gives {expected}. Use another environment."
        )


def choose_outputs(path: str, session: Any, ports: Ports, spec: PolicySpec, name: str | None) -> Outputs:
    """Return the outputs that are used: `name`, those of exported students, those that fit the head, or the action."""
    outputs = {output.name: output for output in session.get_outputs()}
    for state in ports.states:
        del outputs[state.target]
    head, size = spec.head, spec.head.num_params
    if name is None and {"mean", "log_std"} <= {*outputs} and not head.discrete:
        return Outputs(("mean", "log_std"), "gaussian", known=True)
    named = next((key for key in PARAMS if key in outputs and _fits(outputs[key], size)), None)
    if name is None and named is not None:
        return Outputs((named,), PARAMS[named], known=True)
    fitting = [key for key, output in outputs.items() if _fits(output, size)]
    acting = [key for key, output in outputs.items() if key not in fitting and _acts(output, spec)]
    found = ", ".join(f"{output.name} {output.shape}" for output in outputs.values())
    if name is not None and name not in [*fitting, *acting]:
        hint = did_you_mean(name, fitting)
        raise SpecMismatchError(f"teacher.output: {path} has no output {name!r} of {size} numbers, only {found}.{hint}")
    if name is None and len(fitting) > 1:
        fitting = [key for key in fitting if not OTHER_OUTPUTS.search(key)] or fitting
    if name is None and len(fitting) > 1:
        actions = [key for key in fitting if re.match("actions?$", key)]
        if head.discrete or len(actions) != 1:
            raise ConfigError(
                f"teacher.output: {' and '.join(fitting)} of {path} fit its {head.kind} head. Set output={fitting[0]}."
            )
        fitting = actions
    chosen = name or next(iter([*fitting, *acting]), None)
    if chosen is None:
        raise SpecMismatchError(
            f"{path}: returns {found}, expected [batch, {size}] for a {head.kind} head, or actions. Use another "
            "environment."
        )
    return Outputs((chosen,), acts=chosen in acting)


def _fits(output: Any, size: int) -> bool:
    return "float" in output.type and len(output.shape) == 2 and output.shape[1] == size


def _acts(output: Any, spec: PolicySpec) -> bool:
    """Return True for integers of the shape of an action, or numbers by the name of one."""
    if output.type not in DTYPES or OTHER_OUTPUTS.search(output.name):
        return False
    width = len(spec.head.choices or spec.head.low)
    shaped = len(output.shape) == 1 if width == 1 else False
    shaped |= len(output.shape) == 2 and output.shape[1] in (width, None)
    return shaped and ("int" in output.type or re.match("actions?$", output.name) is not None)
