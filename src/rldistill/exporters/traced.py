"""ONNX of policies without a program, such as Keras models and students of the user's own, traced by PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rldistill.core.errors import MissingExtraError, error_text
from rldistill.core.heads import GaussianHead
from rldistill.core.policy import Policy
from rldistill.exporters.onnx import OPSET, finish, params_names
from rldistill.exporters.program import ExportError
from rldistill.exporters.runtimes import Interface


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
    arguments = [torch.zeros((2, *part.shape), dtype=getattr(torch, part.dtype)) for part in spec.entries.values()]
    outputs = ["action", *params_names(spec.head)]
    if interface.state_shape is not None:
        names.append("state_in")
        outputs.append("state_out")
        arguments.append(torch.zeros((2, *interface.state_shape)))
    batch = torch.export.Dim("batch")
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about opsets and names, which the checker and the certificate test
            program = torch.onnx.export(
                _Traced(policy, interface).eval(), tuple(arguments), input_names=names, output_names=outputs,
                opset_version=OPSET, dynamo=True, external_data=False, verbose=False,
                dynamic_shapes=(tuple({0: batch} for _ in arguments),),
            )  # fmt: skip
    except Exception as error:  # torch.onnx has no base class of errors
        kind = type(getattr(policy, "config", policy)).__name__
        raise ExportError(f"onnx: PyTorch cannot trace the {kind} ({error_text(error)[:300]})") from None
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None
    return finish(program.model_proto, metadata)
