"""ONNX of policies without a program, such as Keras models and students of the user's own, traced by PyTorch."""

import io
import logging
import re
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rldistill.core.errors import MissingExtraError, error_text
from rldistill.core.heads import GaussianHead
from rldistill.core.policy import Policy
from rldistill.exporters.onnx import OPSET, finish, params_names
from rldistill.exporters.program import ExportError
from rldistill.exporters.runtimes import Interface

TRACED_BATCH = 13
"""Batch of the traced inputs: a size that no layer has by accident."""


class _Traced(nn.Module):
    """Policy with the entries of the observation, then the state, as arguments."""

    def __init__(self, policy: nn.Module, interface: Interface) -> None:
        super().__init__()
        self.policy, self.interface = policy, interface

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        spec = self.interface.spec
        entries, state = [*arguments], None
        if self.interface.state_shape is not None:
            state = entries.pop()
        obs = dict(zip(spec.entries, entries, strict=True)) if spec.parts else entries[0]
        output, after = self.policy(obs, state)
        params = output.params.chunk(2, -1) if isinstance(spec.head, GaussianHead) else [output.params]
        return (output.mode(), *params, *([] if after is None else [after]))


def trace_onnx(policy: Policy, interface: Interface, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a model with a dynamic batch, with the same names as `write_onnx`.

    Raises:
        ExportError: PyTorch cannot trace the policy.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401 - torch.onnx needs both
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtraError("Writing ONNX", "export") from None
    if not isinstance(policy, nn.Module):
        raise ExportError(f"onnx: a {type(policy).__name__} is no torch.nn.Module, so PyTorch cannot trace it")
    spec = interface.spec
    names = [key or "obs" for key in spec.entries]
    shapes = [(part.shape, getattr(torch, part.dtype)) for part in spec.entries.values()]
    arguments = [torch.zeros((TRACED_BATCH, *shape), dtype=dtype) for shape, dtype in shapes]
    outputs = ["action", *params_names(spec.head)]
    if interface.state_shape is not None:
        names.append("state_in")
        outputs.append("state_out")
        arguments.append(torch.zeros((TRACED_BATCH, *interface.state_shape)))
    batch = torch.export.Dim("batch")
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # PyTorch prints the graph of a failure, and warns about opsets and names, which the checker and the certificate
        # test.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Traced(policy, interface).eval(), tuple(arguments), input_names=names, output_names=outputs,
                opset_version=OPSET, dynamo=True, external_data=False, verbose=False,
                dynamic_shapes=(tuple({0: batch} for _ in arguments),),
            )  # fmt: skip
    except Exception as error:  # torch.onnx has no base class of errors
        kind = type(getattr(policy, "config", policy)).__name__
        cause: BaseException = error
        while cause.__cause__ is not None:  # the error of the student's own code
            cause = cause.__cause__
        reason = re.sub(r"\x1b\[[0-9;]*m", "", error_text(cause))[:200]
        raise ExportError(
            f"onnx: PyTorch cannot trace the {kind} ({reason}). Use operations that torch.export supports, or another "
            "format."
        ) from None
    finally:
        logging.disable(disabled)
    assert program is not None
    model = program.model_proto  # each access makes a new one
    _free_batch(model)
    return finish(model, metadata)


def _free_batch(model: Any) -> None:
    """Give a graph that was traced for one batch, as those of Keras are, a batch of any size.

    A graph whose numbers depend on the batch does not become right by that; the certificate, which compares batches,
    then fails.
    """
    import onnx

    graph = model.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or (tensor := tensors.get(node.input[1])) is None:
            continue
        sizes = onnx.numpy_helper.to_array(tensor)
        if sizes[:1] == TRACED_BATCH:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([0, *sizes[1:]], np.int64), tensor.name))
        del node.attribute[:]  # without allowzero, 0 is the size of the input
