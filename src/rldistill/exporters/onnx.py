"""Programs as ONNX graphs, opset 20."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import MissingExtraError
from rldistill.core.heads import ActionHead, GaussianHead
from rldistill.core.spec import PolicySpec
from rldistill.exporters.onnx_objects import add_objects
from rldistill.exporters.program import ExportError, Node, Program

OPSET, ML_OPSET, IR_VERSION = 20, 3, 9
OPERATORS = {
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "hardswish": "HardSwish",
    "mish": "Mish",
    "cos": "Cos",
    "log": "Log",
    "negate": "Neg",
}
"""Functions that are one operator without attributes."""

ATTRIBUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "elu": ("Elu", {"alpha": 1.0}),
    "celu": ("Celu", {"alpha": 1.0}),
    "selu": ("Selu", {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}),
    "gelu": ("Gelu", {"approximate": "none"}),
    "leakyrelu": ("LeakyRelu", {"alpha": 0.01}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "softshrink": ("Shrink", {"lambd": 0.5, "bias": 0.5}),
    "hardshrink": ("Shrink", {"lambd": 0.5, "bias": 0.0}),
}
"""Functions that are one operator with attributes."""


def params_names(head: ActionHead) -> list[str]:
    """Return the names of the outputs with the parameters of the head."""
    if isinstance(head, GaussianHead):
        return ["mean", "log_std"]
    if head.action_values:
        return ["q_values"]
    return ["logits"] if head.discrete else ["mean"]


def require_input_names(spec: PolicySpec) -> None:
    """Raise ExportError if an entry of the observation has the name of another input or output of the model."""
    for name in ("action", *params_names(spec.head), "state_in", "state_out"):
        if name in spec.entries:
            raise ExportError(
                f"onnx: the entry {name!r} of the observation has the name of another input or output. Rename it by a "
                "wrapper, or use c or html."
            )


def write_onnx(program: Program, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a model with a dynamic batch, checked by `onnx.checker`.

    The inputs are the entries of the observation by name, `obs` without a dict, and `state_in` for a recurrent policy.
    The outputs are `action`, the parameters of the head, and `state_out`.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("Writing ONNX", "export") from None
    inputs = [*program.entries.values(), *filter(None, [program.state])]
    graph = _Graph({node.settings["name"] for node in inputs})
    for node in program.nodes:
        graph.names[node] = node.settings["name"] if node.kind == "input" else getattr(graph, f"_{node.kind}")(node)
    outputs = [("action", program.action.dtype, program.action.shape)]
    graph.add("Identity", [graph.names[program.action]], "action")
    names = params_names(program.spec.head)
    width = program.params.size // len(names)
    for number, name in enumerate(names):
        source = graph.names[program.params]
        if len(names) > 1:
            source = graph.slice_axis(source, number * width, (number + 1) * width, 1)
        graph.add("Identity", [source], name)
        outputs.append((name, "float32", (width,)))
    if program.next_state is not None:
        graph.add("Identity", [graph.names[program.next_state]], "state_out")
        outputs.append(("state_out", "float32", program.next_state.shape))
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "policy",
            [_value(node.settings["name"], node.dtype, node.shape) for node in inputs],
            [_value(*output) for output in outputs],
            graph.initializers,
        ),
        producer_name="rldistill",
        opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        ir_version=IR_VERSION,
    )
    return finish(model, metadata)


def finish(model: Any, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a model with its metadata, after `onnx.checker`."""
    import onnx

    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class _Graph:
    """Nodes and initializers of a graph; each method but `add` translates one kind of operation.

    Args:
        taken: Names of the inputs, which no result may have.
    """

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.names: dict[Node, str] = {}

    def free_name(self, name: str) -> str:
        """Return the name, with underscores if an input has it."""
        while name in self.taken:
            name += "_"
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        import onnx

        output = output or self.free_name(f"{operator.lower()}_{len(self.nodes)}")
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], output, domain=domain, **attributes))
        return output

    def array(self, value: NDArray[Any] | np.generic) -> str:
        """Add an initializer and return its name."""
        import onnx

        name = self.free_name(f"const_{len(self.initializers)}")
        self.initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integers(self, *values: int) -> str:
        """Add an initializer of int64 and return its name."""
        return self.array(np.array(values, np.int64))

    def slice_axis(self, source: str, start: int, stop: int, axis: int) -> str:
        """Add a slice and return its name."""
        return self.add("Slice", [source, self.integers(start), self.integers(stop), self.integers(axis)])

    def inputs(self, node: Node) -> list[str]:
        """Return the inputs of an operation as float32."""
        return [self.float32(source) for source in node.inputs]

    def float32(self, node: Node) -> str:
        """Return the name of an operation's result as float32."""
        return self.names[node] if node.dtype == "float32" else self.add("Cast", [self.names[node]], to=1)

    def _constant(self, node: Node) -> str:
        # The batch of the constant is that of the inputs of its user, so it is expanded where it is concatenated.
        return self.array(node.arrays["value"][None])

    def _one_hot(self, node: Node) -> str:
        source = self.add("Cast", [self.names[node.inputs[0]]], to=7)
        sizes = node.settings["sizes"]
        columns = self.add("Reshape", [source, self.integers(-1, len(sizes))])
        parts = []
        for number, size in enumerate(sizes):
            column = self.slice_axis(columns, number, number + 1, 1)
            equal = self.add("Equal", [column, self.array(np.arange(size, dtype=np.int64)[None])])
            parts.append(self.add("Cast", [equal], to=1))
        return parts[0] if len(parts) == 1 else self.add("Concat", parts, axis=1)

    def _standardize(self, node: Node) -> str:
        (source,) = node.inputs
        double = source.dtype == "float64"
        name = self.names[source] if double else self.float32(source)
        for operator, key, neutral in (("Sub", "mean", 0.0), ("Div", "std", 1.0)):
            value = node.arrays[key]
            if np.any(value != neutral):
                value = value[None] if value.shape == node.shape and node.shape else value.reshape(())
                name = self.add(operator, [name, self.array(value.astype(np.float64) if double else value)])
        return self.add("Cast", [name], to=1) if double else name

    def _clip(self, node: Node) -> str:
        (name,) = self.inputs(node)
        low, high = node.arrays["low"], node.arrays["high"]
        if low.size == high.size == 1:
            return self.add("Clip", [name, self.array(low.reshape(())), self.array(high.reshape(()))])
        name = self.add("Max", [name, self.array(low[None])])
        return self.add("Min", [name, self.array(high[None])])

    def _concat(self, node: Node) -> str:
        parts, reference = [], next(source for source in node.inputs if source.kind != "constant")
        for source in node.inputs:
            name = self.float32(source)
            if source.kind == "constant":
                shape = self.add("Shape", [self.names[reference]], start=0, end=1)
                shape = self.add("Concat", [shape, self.integers(source.size)], axis=0)
                name = self.add("Expand", [name, shape])
            parts.append(name)
        return self.add("Concat", parts, axis=1)

    def _slice(self, node: Node) -> str:
        (name,) = self.inputs(node)
        return self.slice_axis(name, node.settings["start"], node.settings["stop"], node.settings["axis"] + 1)

    def _reshape(self, node: Node) -> str:
        # The batch is the size that is left, since an input of one number has the shape [B].
        return self.add("Reshape", [self.names[node.inputs[0]], self.integers(-1, *node.shape)])

    def _transpose(self, node: Node) -> str:
        axes = [0, *(axis + 1 for axis in node.settings["axes"])]
        return self.add("Transpose", [self.names[node.inputs[0]]], perm=axes)

    def _linear(self, node: Node) -> str:
        weight, bias = self.array(node.arrays["weight"]), self.array(node.arrays["bias"])
        return self.add("Gemm", [*self.inputs(node), weight, bias], transB=1)

    def _conv(self, node: Node) -> str:
        stride, padding = node.settings["stride"], node.settings["padding"]
        weight, bias = self.array(node.arrays["weight"]), self.array(node.arrays["bias"])
        return self.add("Conv", [*self.inputs(node), weight, bias], strides=[stride] * 2, pads=[padding] * 4)

    def _max_pool(self, node: Node) -> str:
        kernel, stride, padding = (node.settings[key] for key in ("kernel", "stride", "padding"))
        return self.add(
            "MaxPool", self.inputs(node), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4
        )

    def _unary(self, node: Node) -> str:
        (x,), function = self.inputs(node), node.settings["function"]
        if function in OPERATORS:
            return self.add(OPERATORS[function], [x])
        if function in ATTRIBUTES:
            operator, attributes = ATTRIBUTES[function]
            return self.add(operator, [x], **attributes)
        if function == "silu":
            return self.add("Mul", [x, self.add("Sigmoid", [x])])
        if function == "logsigmoid":
            return self.add("Neg", [self.add("Softplus", [self.add("Neg", [x])])])
        if function == "tanhshrink":
            return self.add("Sub", [x, self.add("Tanh", [x])])
        low, high = {"relu6": (0, 6), "hardtanh": (-1, 1)}[function]
        return self.add("Clip", [x, self.array(np.float32(low)), self.array(np.float32(high))])

    def _add(self, node: Node) -> str:
        return self.add("Add", self.inputs(node))

    def _multiply(self, node: Node) -> str:
        return self.add("Mul", self.inputs(node))

    def _tree(self, node: Node) -> str:
        feature, value = node.arrays["feature"], node.arrays["value"]
        count, leaves = len(feature), np.flatnonzero(feature < 0)
        targets = range(value.shape[1])
        weights: dict[str, Any] = {
            "target_ids": [target for _ in leaves for target in targets],
            "target_nodeids": [int(leaf) for leaf in leaves for _ in targets],
            "target_treeids": [0] * (len(leaves) * len(targets)),
            "target_weights": value[leaves].ravel().tolist(),
        }
        inner = feature >= 0
        return self.add(
            "TreeEnsembleRegressor",
            self.inputs(node),
            domain="ai.onnx.ml",
            n_targets=value.shape[1],
            aggregate_function="SUM",
            post_transform="NONE",
            nodes_treeids=[0] * count,
            nodes_nodeids=[*range(count)],
            nodes_featureids=np.where(inner, feature, 0).tolist(),
            nodes_modes=["BRANCH_LEQ" if split else "LEAF" for split in inner],
            nodes_values=np.where(inner, node.arrays["threshold"], 0).astype(np.float32).tolist(),
            nodes_truenodeids=np.where(inner, node.arrays["left"], 0).tolist(),
            nodes_falsenodeids=np.where(inner, node.arrays["right"], 0).tolist(),
            nodes_missing_value_tracks_true=[0] * count,
            **weights,
        )

    def _objects(self, node: Node) -> str:
        return add_objects(self, node, self.names[node.inputs[0]])

    def _mask(self, node: Node) -> str:
        params, mask = node.inputs
        legal = self.add("Cast", [self.names[mask]], to=9)
        return self.add("Where", [legal, self.names[params], self.array(np.float32(node.settings["value"]))])

    def _argmax(self, node: Node) -> str:
        (name,), sizes = self.inputs(node), node.settings["sizes"]
        if not node.shape:
            return self.add("ArgMax", [name], axis=1, keepdims=0)
        ends = np.cumsum(sizes).tolist()
        parts = [
            self.add("ArgMax", [self.slice_axis(name, end - size, end, 1)], axis=1, keepdims=1)
            for end, size in zip(ends, sizes, strict=True)
        ]
        return self.add("Concat", parts, axis=1)

    def _positive(self, node: Node) -> str:
        positive = self.add("Greater", [*self.inputs(node), self.array(np.float32(0))])
        return self.add("Cast", [positive], to=7)


def _value(name: str, dtype: str, shape: tuple[int, ...]) -> Any:
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return onnx.helper.make_tensor_value_info(name, kind, ["batch", *shape])
