"""Checks of ONNX models from untrusted sources: nothing outside the file, no loops, and bounded memory and time."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rldistill.core.errors import CorruptArtifactError, UntrustedFileError, error_text, short_repr
from rldistill.core.spec import PolicySpec

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
LOOPS = ("Loop", "Scan", "BeamSearch", "WhisperBeamSearch", "GreedySearch", "Sampling")
GROWING = (
    "ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Upsample", "Pad", "OneHot", "NonZero", "Unique",
    "Compress", "CenterCropPad", "Col2Im", "MaxUnpool", "HannWindow", "HammingWindow", "BlackmanWindow", "STFT", "DFT",
    "SequenceMap", "SplitToSequence", "ConcatFromSequence", "SequenceConstruct", "ImageDecoder", "Einsum",
)  # fmt: skip
"""Operators whose output can be larger than their inputs, by numbers that only the run determines."""
CHEAP = (
    "Abs", "Acos", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "AveragePool", "BatchNormalization", "Cast",
    "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "Cos", "DequantizeLinear", "Div",
    "Dropout", "DynamicQuantizeLinear", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "GRU", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "Identity", "If", "InstanceNormalization", "LSTM", "LayerNormalization", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul",
    "Neg", "Not", "OneHot", "Or", "PRelu", "Pad", "Pow", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "RNN",
    "Range", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "Relu", "Reshape", "Round", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "Softplus",
    "Softsign", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK",
    "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
)  # fmt: skip
"""Operators whose time follows from the sizes of their inputs and outputs."""
BATCH = 64
"""Number of observations for which the limits hold."""
MAX_NODES, MAX_VALUES, MAX_PRODUCTS = 50_000, 1 << 28, 1 << 39
"""Limits of the operators, of the numbers of a whole run, and of its multiplications: 1 GB and some 20 seconds."""


def require_safe(path: str, model: Any, spec: PolicySpec) -> None:
    """Refuse models that read other files, use unknown operators, may never end, or need too much memory or time.

    Raises:
        UntrustedFileError: The model is refused.
        CorruptArtifactError: Its shapes do not fit each other.
    """
    import onnx

    for tensor in of_kind(model, "TensorProto"):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise UntrustedFileError(
                f"{path}: the tensor {short_repr(tensor.name)} is outside the file. Export it again with "
                "external_data=False."
            )
    domains = {*DOMAINS, *(function.domain for function in model.functions)}
    for node in of_kind(model, "NodeProto"):
        if node.domain not in domains:
            raise UntrustedFileError(
                f"{path}: the operator {short_repr(f'{node.domain}.{node.op_type}')} is of an unknown domain. Export "
                "it without it."
            )
        if node.op_type in LOOPS:
            raise UntrustedFileError(f"{path}: {node.op_type} may never end. Export it with the loop unrolled.")
    _require_few_nodes(path, model)
    _require_size(path, _with_shapes(path, model, spec))


def _messages(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and all messages inside it, whatever their field."""
    pending = [message]
    while pending:
        message = pending.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                repeated = not hasattr(value, "ListFields")
                pending += value if repeated else [value]


def of_kind(message: Any, name: str) -> Iterator[Any]:
    """Yield the messages of one type inside a protobuf message, such as TensorProto."""
    return (inner for inner in _messages(message) if inner.DESCRIPTOR.name == name)


def _require_few_nodes(path: str, model: Any) -> None:
    """Count the operators with functions in place of their calls; functions of functions can stand for billions."""
    calls = {}
    for name, body in [(("", ""), model.graph), *(((f.domain, f.name), f) for f in model.functions)]:
        calls[name] = Counter((node.domain, node.op_type) for node in of_kind(body, "NodeProto"))
    counts: dict[tuple[str, str], int] = {}

    def count(name: tuple[str, str], depth: int) -> int:
        if depth > len(calls):
            raise UntrustedFileError(f"{path}: the function {short_repr(name[1])} calls itself. Export it without.")
        if name not in counts:
            counts[name] = sum(
                number * (count(called, depth + 1) if called in calls else 1) for called, number in calls[name].items()
            )
        return counts[name]

    try:
        total = count(("", ""), 0)
    except RecursionError:
        total = MAX_NODES + 1
    if total > MAX_NODES:
        raise UntrustedFileError(f"{path}: more than {MAX_NODES:,} operators. Use a smaller network.")


def known_shape(spec: PolicySpec, name: str, sizes: Sequence[int], count: int = BATCH) -> list[int]:
    """Return the shape of an input for a batch, with those of the observation, or else `count`, in place of zeros."""
    part = spec.entries.get(name)
    shape = (count, *(spec.flat_shape if part is None else part.shape))
    if len(shape) != len(sizes):
        shape = (count,) * len(sizes)
    return [size or own for size, own in zip(sizes, shape, strict=True)]


def _with_shapes(path: str, model: Any, spec: PolicySpec) -> Any:
    """Return the model with functions in place of their calls, and with the inferred shapes of a batch."""
    import onnx

    try:
        if model.functions:
            import onnx.inliner

            model = onnx.inliner.inline_local_functions(model)
        fixed = onnx.ModelProto()
        fixed.CopyFrom(model)
        for graph in of_kind(fixed, "GraphProto"):
            graph.ClearField("value_info")  # which the file could have wrong
        constants = {tensor.name for tensor in fixed.graph.initializer}
        for entry in fixed.graph.input:
            dims = entry.type.tensor_type.shape.dim if entry.name not in constants else ()
            for dim, size in zip(dims, known_shape(spec, entry.name, [dim.dim_value for dim in dims]), strict=True):
                dim.dim_value = size
        for entry in fixed.graph.output:
            entry.type.tensor_type.ClearField("shape")
        return onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception as error:  # onnx has no base class of errors
        raise CorruptArtifactError(
            f"{path}: its shapes do not fit each other ({error_text(error)}). Export it again."
        ) from None


def _require_size(path: str, model: Any) -> None:
    shapes: dict[str, list[int] | None] = {"": []}
    for value in of_kind(model, "ValueInfoProto"):
        kind = value.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
        known = kind.HasField("shape") and min(sizes, default=0) >= 0
        shapes[value.name] = sizes if known else None
    for tensor in of_kind(model, "TensorProto"):
        shapes[tensor.name] = list(tensor.dims)
    total = products = 0
    for node in of_kind(model, "NodeProto"):
        inputs, outputs = ([shapes.get(name) for name in names] for names in (node.input, node.output))
        if None in outputs and node.op_type in GROWING:
            raise UntrustedFileError(
                f"{path}: the size of {node.op_type} {short_repr(node.name)} depends on the observation. Export it "
                "with fixed shapes."
            )
        sizes = [math.prod(shape) for shape in outputs if shape is not None]
        if sum(sizes) > MAX_VALUES:
            raise UntrustedFileError(
                f"{path}: {short_repr(node.output[0])} has the shape {short_repr(outputs[0])} for {BATCH} "
                "observations. Use a smaller network."
            )
        total += sum(sizes)
        products += _products(node, [shape for shape in inputs if shape is not None], max(sizes, default=0))
    if total > MAX_VALUES or products > MAX_PRODUCTS:
        raise UntrustedFileError(
            f"{path}: {total:,} numbers and {products:,} multiplications for {BATCH} observations. Use a smaller "
            "network."
        )


def _products(node: Any, inputs: list[list[int]], size: int) -> int:
    """Return the multiplications of an operator: those of a matrix product, or of a convolution or a pooling."""
    sizes = sorted((math.prod(shape) for shape in inputs), reverse=True)[:2]
    # Of a product of matrices (n, k) and (k, m): n * k * m.
    found = math.isqrt(math.prod([*sizes, size])) if len(sizes) > 1 else max([*sizes, size])
    kernel = math.prod(next((list(entry.ints) for entry in node.attribute if entry.name == "kernel_shape"), [1]))
    if node.op_type == "Conv" and len(inputs) > 1:
        kernel = max(kernel, math.prod(inputs[1][1:]))
    return max(found, kernel * size)


def needs_trial(model: Any) -> bool:
    """Return True if the time or the memory of the model does not follow from its shapes."""
    return any(node.op_type not in CHEAP or node.domain for node in of_kind(model, "NodeProto"))
