"""Keras 3 teachers, trained on any backend."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rldistill.core.heads import HeadKind
from rldistill.core.spec import PolicySpec
from rldistill.students.keras import channels_last, keras_on_torch, read_keras, require_keras_fit
from rldistill.teachers.file_policy import FilePolicy, require_scalable, with_head


class KerasPolicy(FilePolicy, nn.Module):
    """Policy with a Keras model of one input.

    Frames `[B, C, H, W]` are passed as `[B, H, W, C]` to a model that expects those, or one vector of them. uint8 is
    passed as 0 to 255, times `scale`.
    """

    def __init__(self, content: bytes, spec: PolicySpec, scale: float, *, model: Any = None) -> None:
        super().__init__(content, spec, scale)
        self.model, self._scale = _read(content) if model is None else model, scale

    def compute(self, obs: Tensor) -> Tensor:
        """Return the output of the model, `[B, P]`."""
        with keras_on_torch().device(obs.device.type):
            inputs = channels_last(obs, tuple(self.model.inputs[0].shape[1:])) * self._scale
            params: Tensor = self.model(inputs, training=False)
        return params


def _read(content: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:  # Keras reads from a path only
        copy = Path(folder) / "model.keras"
        copy.write_bytes(content)
        return read_keras(copy)


def load_keras(path: str, spec: PolicySpec, head: HeadKind | None = None, scale: float = 1.0) -> KerasPolicy:
    """Load a `.keras` file; raise the errors of `load_policy`."""
    model = read_keras(Path(path))
    spec = with_head(spec, head, path)
    require_keras_fit(path, model, spec)
    require_scalable(path, scale, str(model.inputs[0].dtype))
    policy = KerasPolicy(Path(path).read_bytes(), spec, scale, model=model).eval()
    policy.detect_probabilities(path, head)
    return policy
