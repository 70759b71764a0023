"""ONNX teachers: graphs of known operators, run by onnxruntime, with nothing outside their file."""

from __future__ import annotations

import dataclasses
import hashlib
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
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.io.untrusted import MAX_WEIGHTS, require_small
from rldistill.teachers.probabilities import gives_probabilities, logits, made_up, warn_of_logits

ENDLESS = ("Loop", "Scan")
MOST_ACTIVATIONS = 1 << 26
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
FLOATS = (1, 10, 11)
"""TensorProto's float, float16 and double."""
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
}


class OnnxPolicy:
    """A policy whose head's numbers are one output of an ONNX graph with one input.

    uint8 observations reach a graph of floats as they are, 0 to 255, unless `scale` is given. A graph that was exported
    for one observation is run once for each. Where it gives `probabilities`, they become logits.
    """

    def __init__(
        self, content: bytes, spec: PolicySpec, output: str, scale: float, probabilities: bool = False
    ) -> None:
        self._content, self._spec, self._output, self._scale = content, spec, output, scale
        self.probabilities = probabilities
        self._session = _session(content)
        self.digest, self.asked = hashlib.sha256(content).hexdigest(), (output, scale)

    @property
    def spec(self) -> PolicySpec:
        """What the policy takes and gives."""
        return self._spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """None: it has no state."""
        return None

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What onnxruntime computes of a batch of observations."""
        assert isinstance(obs, Tensor)
        (entry,) = self._session.get_inputs()
        fed = obs.cpu().numpy().astype(DTYPES[entry.type], copy=False)
        if self._scale != 1:
            fed = (fed * self._scale).astype(fed.dtype)
        rows = 1 if entry.shape[0] == 1 else len(fed)
        parts = [np.ascontiguousarray(fed[at : at + rows]) for at in range(0, len(fed), rows)]
        said = [self._session.run([self._output], {entry.name: part})[0] for part in parts]
        params = torch.from_numpy(np.concatenate(said)).float().to(obs.device)
        return PolicyOutput(self._spec.head, logits(self._spec.head, params) if self.probabilities else params), None

    def __getstate__(self) -> tuple[Any, ...]:
        return self._content, self._spec, self._output, self._scale, self.probabilities

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]


def load_onnx(
    path: Path,
    spec: PolicySpec | None,
    head: HeadKind | None = None,
    scale: float = 1.0,
    output: str | None = None,
) -> OnnxPolicy:
    """Read an ONNX file.

    Args:
        path: the file.
        spec: of the environment, which it does not tell.
        head: what its numbers mean, where that is not the neutral head of the action space: `q_values`.
        scale: what its input is multiplied with, 1/255 for a graph that expects pixels from 0 to 1.
        output: the name of the output that holds the head's numbers, where several could.

    Raises:
        ConfigError: no `spec`, several outputs that fit and no `output`, or a `scale` for integers.
        MissingExtraError: onnxruntime is not installed.
        UntrustedFileError: tensors kept outside the file, operators of no known domain.
        SpecMismatchError: an input, an output or a head that is not the environment's, or a batch of one size only.
        CorruptArtifactError: truncated or altered, or NaN among its weights.
    """
    if spec is None:
        raise ConfigError(f"{path}: an ONNX file does not tell its environment; give the environment's spec")
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("Reading ONNX", "export") from None
    require_small(path, "it", path.stat().st_size, MAX_WEIGHTS)
    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf raises its own
        raise CorruptArtifactError(f"{path}: not a whole ONNX file ({error_text(error)}); {DOWNLOAD_HINT}") from None
    tensors = [*_tensors(model.graph), *(tensor for function in model.functions for tensor in _tensors(function))]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UntrustedFileError(
                f"{path}: {tensor.name} is kept outside the file, which is not followed; export it again with "
                "external_data=False"
            )
    for node in [*_nodes(model.graph), *(node for function in model.functions for node in function.node)]:
        if node.domain not in DOMAINS and node.domain not in {function.domain for function in model.functions}:
            raise UntrustedFileError(f"{path}: an operator {node.domain}.{node.op_type} of no known domain")
        if node.op_type in ENDLESS:
            raise UntrustedFileError(f"{path}: {node.op_type}, which may go on for ever; unroll it when it is exported")
    _require_small_values(path, model)
    try:
        session = _session(content)
    except Exception as error:  # onnxruntime has no tree of errors
        raise CorruptArtifactError(f"{path}: onnxruntime refuses it ({error_text(error)}); export it again") from None
    for tensor in tensors:  # of which the runtime has seen by now that they hold what they claim
        if tensor.data_type in FLOATS and np.isnan(onnx.numpy_helper.to_array(tensor)).any():
            raise CorruptArtifactError(f"{path}: {short_repr(tensor.name)} holds NaN; {RESAVE_HINT}")
    spec = dataclasses.replace(spec, head=spec.head.as_kind(head or spec.head.kind, str(path)))
    policy = OnnxPolicy(content, spec, _chosen_output(path, session, spec, output), scale)
    (entry,) = session.get_inputs()
    if scale != 1 and "int" in entry.type:
        raise ConfigError(f"teacher: {path}: scale: its input is {entry.type}, which holds no fractions; leave it out")
    _try_out(path, policy)
    policy.probabilities = gives_probabilities(policy)
    if head is None and not policy.probabilities:
        warn_of_logits(str(path), spec.head)
    return policy


def _try_out(path: Path, policy: OnnxPolicy) -> None:
    """Refuse a graph that does not run on one and on three observations."""
    for count in (1, 3):
        try:
            said = policy(made_up(policy.spec, count))[0].params
        except Exception as error:  # onnxruntime has no tree of errors
            what = f"onnxruntime fails on {count} observations at a time ({' '.join(str(error).split())})"
            raise SpecMismatchError(f"{path}: {what}; export it with a batch of any size") from None
        if said.shape != (count, policy.spec.head.num_params):
            found = list(said.shape)
            raise SpecMismatchError(f"{path}: gives {found} for {count} observations; export it with batches")
        if not torch.isfinite(said).all():
            raise CorruptArtifactError(f"{path}: gives NaN or infinite numbers for observations of a usual size")


def _require_small_values(path: Path, model: Any) -> None:
    """Refuse graphs that make huge tensors of a small input, as far as their shapes can be told."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # onnx has no tree of errors
        raise CorruptArtifactError(f"{path}: its shapes do not fit each other ({error_text(error)})") from None
    for value in inferred.graph.value_info:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(dim for dim in dims if dim) > MOST_ACTIVATIONS:
            raise UntrustedFileError(f"{path}: {short_repr(value.name)} holds {short_repr(dims)} numbers; refused")


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)


def _tensors(graph: Any) -> Iterator[Any]:
    """All tensors of a graph, or of a function, which has nodes alone."""
    if hasattr(graph, "initializer"):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t, *attribute.tensors]
            for inner in [attribute.g, *attribute.graphs]:
                yield from _tensors(inner)


def _chosen_output(path: Path, session: Any, spec: PolicySpec, asked: str | None) -> str:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or inputs[0].type not in DTYPES:
        raise SpecMismatchError(f"{path}: {len(inputs)} inputs of {[i.type for i in inputs]}; expected one of numbers")
    shape = tuple(inputs[0].shape)[1:]
    if len(shape) != len(spec.obs_shape) or any(
        isinstance(size, int) and size != wanted for size, wanted in zip(shape, spec.obs_shape, strict=True)
    ):
        raise SpecMismatchError(f"{path}: takes observations of {shape}, the environment gives {spec.obs_shape}")
    wide = [o.name for o in outputs if "float" in o.type and len(o.shape) == 2 and o.shape[1] == spec.head.num_params]
    found = ", ".join(f"{output.name} {output.shape}" for output in outputs)
    if asked is not None and asked not in wide:
        hint = did_you_mean(asked, wide)
        raise SpecMismatchError(f"{path}: no output {asked!r} of {spec.head.num_params} numbers; it has {found}.{hint}")
    if not wide:
        raise SpecMismatchError(f"{path}: gives {found}; expected [batch, {spec.head.num_params}] for {spec.head.kind}")
    if asked is None and len(wide) > 1:
        raise ConfigError(
            f"{path}: {' and '.join(wide)} could be its {spec.head.kind}; say which one: output={wide[0]}"
        )
    return asked or str(wide[0])
