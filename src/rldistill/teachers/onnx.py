"""ONNX teachers: graphs of known operators in one file, run by onnxruntime."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.entries import first_entry, flat_values, split_parts
from rldistill.core.errors import (
    DOWNLOAD_HINT,
    RESAVE_HINT,
    ConfigError,
    CorruptArtifactError,
    MissingExtraError,
    RLDistillError,
    SpecMismatchError,
    error_text,
    short_repr,
)
from rldistill.core.heads import MASK, HeadKind
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.io.untrusted import MAX_WEIGHTS_BYTES, read_regular, run_limited
from rldistill.io.user_code import one_hot_logits
from rldistill.teachers.file_policy import NUM_TRIALS, FilePolicy, synthetic_observations, with_head
from rldistill.teachers.onnx_checks import BATCH, known_shape, needs_trial, of_kind, require_safe
from rldistill.teachers.onnx_ports import DTYPES, Outputs, Ports, choose_outputs, find_ports

FLOAT_TYPES = (1, 10, 11)
"""TensorProto's float, float16 and double."""


class OnnxPolicy(FilePolicy):
    """Policy with an ONNX graph, whose inputs are the observation, or its entries by name, and parts of a state.

    uint8 is passed to a graph of floats as 0 to 255, times `scale`. A graph for a single observation is run once for
    each. An action of the graph becomes parameters of a head that always chooses it. onnxruntime computes on the CPU.
    """

    def __init__(self, path: str, content: bytes, spec: PolicySpec, outputs: Outputs, scale: float) -> None:
        super().__init__(path, content, spec, outputs, scale)
        self._outputs, self._scale, self._session = outputs, scale, session(content)
        self._ports = find_ports(path, self._session, spec)

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return zeros, or None without a state."""
        size = sum(math.prod(state.shape) for state in self._ports.states)
        return torch.zeros(batch_size, size) if self._ports.states else None

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for observations `[B, ...]`, and the next state."""
        entries = split_parts(obs, self.spec) if self.spec.parts else obs
        first = first_entry(entries)
        if state is None:
            state = self.initial_state(len(first))
        params, after = self._run(entries, state)
        output = self.to_output(params)
        if not isinstance(entries, Tensor) and MASK in entries:
            output = output.masked(entries[MASK])
        return output.to(first.device), None if after is None else after.to(first.device)

    def compute(self, obs: Tensor) -> Tensor:
        """Return the parameters of the head, `[B, P]`, at the start of an episode."""
        entries = split_parts(obs, self.spec) if self.spec.parts else obs
        return self._run(entries, self.initial_state(len(obs)))[0]

    def run_outputs(self, names: Sequence[str], obs: Tensor) -> list[NDArray[Any]]:
        """Return outputs of the graph at the start of an episode."""
        entries = split_parts(obs, self.spec) if self.spec.parts else obs
        return self._run_graph(names, entries, self.initial_state(len(obs)))

    def _run(self, entries: Obs, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        states = [port.target for port in self._ports.states]
        names = self._outputs.names
        results = self._run_graph([*names, *states], entries, state)
        values, parts = results[: len(names)], results[len(names) :]
        after = None if state is None else torch.from_numpy(np.concatenate(parts, 1)).float()
        if self._outputs.acts:
            return one_hot_logits(self.spec.head, values[0], len(values[0]), self.path), after
        return torch.from_numpy(np.concatenate(values, 1)).float(), after

    def _run_graph(self, names: Sequence[str], entries: Obs, state: Tensor | None) -> list[NDArray[Any]]:
        """Return outputs for a batch, of states as `[B, N]`."""
        inputs = {}
        for key, entry in self._ports.entries.items():
            # A graph of one input takes a dict as one vector.
            value = flat_values(entries, self.spec) if not key or isinstance(entries, Tensor) else entries[key]
            array = value.cpu().numpy()
            scaled = self._scale != 1 and (len(self._ports.entries) == 1 or array.dtype == np.uint8)
            array = array.astype(DTYPES[entry.type], copy=False)
            inputs[entry.name] = (array * self._scale).astype(array.dtype) if scaled else array
        count, fixed = len(next(iter(inputs.values()))), [entry.shape[0] for entry in self._ports.entries.values()]
        before = None if state is None else state.cpu().numpy()
        batches = []
        rows = 1 if 1 in fixed else count
        for start in range(0, count, rows):
            batch = {name: np.ascontiguousarray(array[start : start + rows]) for name, array in inputs.items()}
            column = 0
            for port in self._ports.states:
                assert before is not None
                batch[port.source] = port.split(before[start : start + rows], column)
                column += math.prod(port.shape)
            results = dict(zip(names, self._session.run(list(names), batch), strict=True))
            for port in self._ports.states:
                if port.target in results:
                    results[port.target] = port.flat(results[port.target])
            batches.append([*results.values()])
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def load_onnx(
    path: str, spec: PolicySpec, head: HeadKind | None = None, scale: float = 1.0, output: str | None = None
) -> OnnxPolicy:
    """Load an ONNX file; raise the errors of `load_policy`."""
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("Reading ONNX", "export") from None
    content, model = read_model(Path(path), spec)
    graph = open_session(path, content)
    for tensor in of_kind(model, "TensorProto"):  # after onnxruntime has checked that their sizes are right
        if tensor.data_type in FLOAT_TYPES and np.isnan(onnx.numpy_helper.to_array(tensor)).any():
            raise CorruptArtifactError(f"{path}: {short_repr(tensor.name)} holds NaN; {RESAVE_HINT}")
    spec = spec if any(entry.name == MASK for entry in graph.get_inputs()) else spec.unmasked
    with_kind = with_head(spec, head, path)
    ports = find_ports(path, graph, spec)
    outputs = choose_outputs(path, graph, ports, with_kind, output)
    if outputs.acts and head is not None:
        raise ConfigError(f"teacher.head: {path} returns actions, not parameters of a head. Remove the option.")
    policy = OnnxPolicy(path, content, with_head(spec, head or outputs.kind, path), outputs, scale)
    _require_batches(path, policy)
    if outputs.kind == "gaussian" and head is None:
        policy = _with_own_gaussian(policy, [entry.name for entry in graph.get_outputs()])
    known = outputs.acts or outputs.known
    policy.apply_options(head or (policy.spec.head.kind if known else None), scale, _types(ports))
    return policy


def _types(ports: Ports) -> str:
    types = [str(entry.type) for entry in ports.entries.values()]
    return next((name for name in types if "int" not in name), types[0])


def _require_batches(path: str, policy: OnnxPolicy) -> None:
    """Raise the errors of `load_policy` unless the graph takes batches of any size, and returns ordinary numbers."""
    for count in (1, 3):
        try:
            params = policy.compute(synthetic_observations(policy.spec, count))
        except RLDistillError:
            raise
        except Exception as error:  # onnxruntime has no base class of errors
            reason = f"onnxruntime fails on {count} observations ({error_text(error)})"
            raise SpecMismatchError(f"{path}: {reason}. Export it with a batch of any size.") from None
        if params.shape != (count, policy.spec.head.num_params):
            problem = f"returns {list(params.shape)} for {count} observations"
            raise SpecMismatchError(f"{path}: {problem}. Export it with a batch of any size.")
        if not torch.isfinite(params).all():
            raise CorruptArtifactError(
                f"{path}: returns NaN or infinite numbers for ordinary observations. Check its weights."
            )


def _with_own_gaussian(policy: OnnxPolicy, outputs: Sequence[str]) -> OnnxPolicy:
    """Return the policy with the head, of a Gaussian that is clipped or squashed, whose mode is the graph's action."""
    if "action" not in outputs:
        return policy
    obs = synthetic_observations(policy.spec, NUM_TRIALS)
    (action,), params = policy.run_outputs(["action"], obs), policy.compute(obs)
    heads = [policy.spec.head.as_kind(kind) for kind in ("gaussian", "squashed_gaussian")]
    errors = [float((head.bounded(head.raw_mode(params)) - torch.from_numpy(action)).abs().max()) for head in heads]
    path, content, spec, *settings = policy.arguments
    best = heads[errors.index(min(errors))]
    return OnnxPolicy(path, content, dataclasses.replace(spec, head=best), *settings)


def read_model(path: Path, spec: PolicySpec) -> tuple[bytes, Any]:
    """Return the bytes of an ONNX file for the observations of `spec`, and its model, once it is safe to run.

    Raises:
        UntrustedFileError: It refers to other files, may never end, or needs too much memory or time.
        CorruptArtifactError: It is truncated or damaged.
    """
    import onnx

    content = read_regular(path, MAX_WEIGHTS_BYTES)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf raises errors of its own
        raise CorruptArtifactError(f"{path}: not a whole ONNX file ({error_text(error)}); {DOWNLOAD_HINT}") from None
    require_safe(str(path), model, spec)
    if needs_trial(model):
        run_limited(str(path), lambda: _try(session(content), spec))
    return content, model


def _try(graph: Any, spec: PolicySpec) -> None:
    """Run a model on batches of zeros."""
    for count in (1, BATCH):
        inputs: dict[str, NDArray[Any]] = {}
        for entry in graph.get_inputs():
            shape = known_shape(spec, entry.name, [size if isinstance(size, int) else 0 for size in entry.shape], count)
            inputs[entry.name] = np.zeros(shape, DTYPES.get(entry.type, np.float32))
        try:
            graph.run(None, inputs)
        except Exception as error:  # other errors, such as of a model for one observation, come again with their names
            if "alloc" in str(error):
                raise


def open_session(path: Path | str, content: bytes) -> Any:
    """Return the session of a file; raise CorruptArtifactError if onnxruntime refuses it."""
    try:
        return session(content)
    except Exception as error:  # onnxruntime has no base class of errors
        raise CorruptArtifactError(f"{path}: onnxruntime refuses it ({error_text(error)}). Export it again.") from None


def session(content: bytes) -> Any:
    """Return a session of onnxruntime on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
