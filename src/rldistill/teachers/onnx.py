"""ONNX teachers: graphs of known operators in one file, run by onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rldistill.core.errors import (
    DOWNLOAD_HINT,
    RESAVE_HINT,
    ConfigError,
    CorruptArtifactError,
    MissingExtraError,
    SpecMismatchError,
    UntrustedFileError,
    did_you_mean,
    error_text,
    short_repr,
)
from rldistill.core.heads import HeadKind
from rldistill.core.spec import PolicySpec
from rldistill.io.atomic import read_regular
from rldistill.io.untrusted import MAX_WEIGHTS_BYTES
from rldistill.teachers.file_policy import FilePolicy, synthetic_observations, with_head

LOOPS = ("Loop", "Scan")
MAX_VALUES = 1 << 26
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
FLOAT_TYPES = (1, 10, 11)
"""TensorProto's float, float16 and double."""
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
}


class OnnxPolicy(FilePolicy):
    """Policy with an ONNX graph of one input; one output of the graph is the parameters of the head.

    uint8 is passed to a graph of floats as 0 to 255, times `scale`. A graph for a single observation is run once for
    each. onnxruntime computes on the CPU.
    """

    def __init__(self, path: str, content: bytes, spec: PolicySpec, output: str, scale: float) -> None:
        super().__init__(path, content, spec, output, scale)
        self._output, self._scale, self._session = output, scale, _session(content)

    __call__ = FilePolicy.forward

    def compute(self, obs: Tensor) -> Tensor:
        """Return the output of the graph, `[B, P]`."""
        (entry,) = self._session.get_inputs()
        inputs = obs.cpu().numpy().astype(DTYPES[entry.type], copy=False)
        if self._scale != 1:
            inputs = (inputs * self._scale).astype(inputs.dtype)
        rows = 1 if entry.shape[0] == 1 else len(inputs)
        batches = [np.ascontiguousarray(inputs[start : start + rows]) for start in range(0, len(inputs), rows)]
        outputs = [self._session.run([self._output], {entry.name: batch})[0] for batch in batches]
        return torch.from_numpy(np.concatenate(outputs)).float().to(obs.device)


def load_onnx(
    path: str, spec: PolicySpec, head: HeadKind | None = None, scale: float = 1.0, output: str | None = None
) -> OnnxPolicy:
    """Load an ONNX file; raise the errors of `load_policy`."""
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("Reading ONNX", "export") from None
    content = read_regular(Path(path), MAX_WEIGHTS_BYTES)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf raises errors of its own
        raise CorruptArtifactError(f"{path}: not a whole ONNX file ({error_text(error)}); {DOWNLOAD_HINT}") from None
    _require_safe(path, model)
    try:
        session = _session(content)
    except Exception as error:  # onnxruntime has no base class of errors
        raise CorruptArtifactError(f"{path}: onnxruntime refuses it ({error_text(error)}); export it again") from None
    for tensor in _tensors(model):  # after onnxruntime has checked that their sizes are right
        if tensor.data_type in FLOAT_TYPES and np.isnan(onnx.numpy_helper.to_array(tensor)).any():
            raise CorruptArtifactError(f"{path}: {short_repr(tensor.name)} holds NaN; {RESAVE_HINT}")
    spec = with_head(spec, head, path)
    policy = OnnxPolicy(path, content, spec, _output_name(path, session, spec, output), scale)
    for count in (1, 3):
        try:
            params = policy(synthetic_observations(spec, count))[0].params
        except Exception as error:  # onnxruntime has no base class of errors
            reason = f"onnxruntime fails on {count} observations ({' '.join(str(error).split())})"
            raise SpecMismatchError(f"{path}: {reason}. Export it with a batch of any size.") from None
        if params.shape != (count, spec.head.num_params):
            problem = f"returns {list(params.shape)} for {count} observations"
            raise SpecMismatchError(f"{path}: {problem}. Export it with a batch of any size.")
        if not torch.isfinite(params).all():
            raise CorruptArtifactError(
                f"{path}: returns NaN or infinite numbers for ordinary observations. Check its weights."
            )
    policy.apply_options(head, scale, session.get_inputs()[0].type)
    return policy


def _require_safe(path: str, model: Any) -> None:
    """Refuse tensors outside the file, unknown operators, loops, and huge tensors as far as shapes are known."""
    import onnx

    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UntrustedFileError(
                f"{path}: the tensor {tensor.name} is outside the file. Export it again with external_data=False."
            )
    domains = {*DOMAINS, *(function.domain for function in model.functions)}
    for node in (node for graph in _graphs(model) for node in graph.node):
        if node.domain not in domains:
            raise UntrustedFileError(
                f"{path}: the operator {node.domain}.{node.op_type} is of an unknown domain. Export it without it."
            )
        if node.op_type in LOOPS:
            raise UntrustedFileError(f"{path}: {node.op_type} may never end. Export it with the loop unrolled.")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # onnx has no base class of errors
        raise CorruptArtifactError(
            f"{path}: its shapes do not fit each other ({error_text(error)}). Export it again."
        ) from None
    for value in inferred.graph.value_info:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(size for size in sizes if size) > MAX_VALUES:
            raise UntrustedFileError(
                f"{path}: {short_repr(value.name)} has the shape {short_repr(sizes)}. Use a smaller network."
            )


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _graphs(model: Any) -> Iterator[Any]:
    """Yield the graph, the functions, and all graphs inside their nodes."""
    pending = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        yield graph
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            pending += [attribute.g, *attribute.graphs]


def _tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())  # a function has nodes only
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            yield from [attribute.t, *attribute.tensors]


def _output_name(path: str, session: Any, spec: PolicySpec, name: str | None) -> str:
    """Return the name of the output with the parameters of the head, once the input fits."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or inputs[0].type not in DTYPES:
        types = [entry.type for entry in inputs]
        raise SpecMismatchError(
            f"{path}: {len(inputs)} inputs of {types}, expected one of numbers. Export it with one."
        )
    shape = tuple(inputs[0].shape)[1:]
    if len(shape) != len(spec.obs_shape) or any(
        isinstance(size, int) and size != expected for size, expected in zip(shape, spec.obs_shape, strict=True)
    ):
        raise SpecMismatchError(
            f"{path}: takes observations of {shape}, the environment gives {spec.obs_shape}. Use another environment."
        )
    size = spec.head.num_params
    fitting = [o.name for o in outputs if "float" in o.type and len(o.shape) == 2 and o.shape[1] == size]
    found = ", ".join(f"{output.name} {output.shape}" for output in outputs)
    if name is not None and name not in fitting:
        hint = did_you_mean(name, fitting)
        raise SpecMismatchError(f"teacher.output: {path} has no output {name!r} of {size} numbers, only {found}.{hint}")
    if not fitting:
        raise SpecMismatchError(
            f"{path}: returns {found}, expected [batch, {size}] for a {spec.head.kind} head. Use another environment."
        )
    if name is None and len(fitting) > 1:
        raise ConfigError(
            f"teacher.output: {' and '.join(fitting)} of {path} fit its {spec.head.kind} head. Set output={fitting[0]}."
        )
    return name or str(fitting[0])
